"""Windows: positions and contents of different purposes never meet."""

from itertools import pairwise

import pytest

from data.families import FAMILIES, families_of
from data.sequences import Purpose, Window, windows

PURPOSES: dict[str, tuple[Purpose, ...]] = {
    "six": ("training", "paper", "large", "selection"),
    "broad": ("training", "broad"),
    "held-out": ("held-out",),
}
LINES = [name for name, family in FAMILIES.items() if family.run is None]


def grams(terms: tuple[int, ...], length: int = 10) -> set[tuple[int, ...]]:
    return {terms[i : i + length] for i in range(len(terms) - length + 1)}


def of_purposes(name: str) -> dict[Purpose, list[Window]]:
    return {purpose: windows(name, purpose) for purpose in PURPOSES[FAMILIES[name].role]}


@pytest.mark.parametrize("name", LINES)
def test_positions_of_different_purposes_lie_at_least_ten_apart(name: str) -> None:
    spans: dict[tuple[str, str], tuple[int, int]] = {}
    for purpose, found in of_purposes(name).items():
        for window in found:
            low, high = spans.get((purpose, window.block), (window.start, window.start))
            stop = window.start + len(window.terms)
            spans[purpose, window.block] = (min(low, window.start), max(high, stop))
    ordered = sorted((low, high, purpose) for (purpose, _), (low, high) in spans.items())
    for (_, high, before), (low, _, after) in pairwise(ordered):
        assert low - high >= (0 if before == after == "paper" else 10), (before, after, high, low)


@pytest.mark.parametrize("name", LINES)
def test_a_window_holds_the_terms_at_its_positions(name: str) -> None:
    for found in of_purposes(name).values():
        for window in found[:: max(1, len(found) // 6)]:
            assert window.terms == FAMILIES[name].terms(window.start, window.start + FAMILIES[name].window)
            assert window.text == ", ".join(str(term) for term in window.terms)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.run])
def test_a_run_serves_one_purpose(name: str) -> None:
    training, broad = (windows(name, purpose) for purpose in ("training", "broad"))
    assert (len(training), len(broad)) == (16, 8)
    assert not {w.block for w in training} & {w.block for w in broad}
    assert not {w.terms for w in training} & {w.terms for w in broad}


@pytest.mark.parametrize("name", [*families_of("six"), *families_of("broad")])
def test_no_ten_terms_of_an_evaluation_window_stand_in_a_training_window_of_the_family(name: str) -> None:
    found = of_purposes(name)
    trained = set().union(*(grams(window.terms) for window in found.pop("training")))
    meeting = [w.text for held in found.values() for w in held if grams(w.terms) & trained]
    assert meeting == []


@pytest.mark.parametrize("name", families_of("six"))
def test_no_ten_terms_stand_in_windows_of_two_evaluation_purposes(name: str) -> None:
    found = of_purposes(name)
    seen = [set().union(*(grams(w.terms) for w in found[purpose])) for purpose in ("paper", "large", "selection")]
    assert not (seen[0] & seen[1] | seen[0] & seen[2] | seen[1] & seen[2])


def test_training_windows_overlap_within_a_block_only() -> None:
    found = windows("even", "training")
    assert len(found) == 36 * 61
    assert {w.start for w in found if w.block == found[0].block} == set(range(240, 301))


def test_the_papers_windows_are_the_first_two_hundred_terms_cut_in_four() -> None:
    joined = [term for window in windows("primes", "paper") for term in window.terms]
    assert tuple(joined) == FAMILIES["primes"].terms(0, 200)
    assert [window.start for window in windows("primes", "paper")] == [0, 50, 100, 150]


@pytest.mark.parametrize(
    ("name", "purpose"),
    [("primes", "broad"), ("squares", "paper"), ("lucky", "training"), ("lucky", "large"), ("powers_of_2", "held-out")],
)
def test_a_purpose_that_the_role_does_not_serve_is_refused(name: str, purpose: Purpose) -> None:
    with pytest.raises(ValueError, match=f"family '{name}' has the role .* gives no windows for '{purpose}'"):
        windows(name, purpose)


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown family 'squars'.*closest: squares"):
        windows("squars", "training")
