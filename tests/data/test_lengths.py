"""Suites of one length: the same starts for all of them, and nothing that anything else reads."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.families import FAMILIES, families_of
from data.lengths import FIRST, SPACING, WINDOWS, length_suite
from data.sequences import windows
from data.suites import SUITES, Suite, separated


@given(st.integers(10, 400))
def test_six_families_of_twelve_windows_each(terms: int) -> None:
    suite = length_suite(terms)
    assert (suite.name, suite.families) == (f"length-{terms}", families_of("six"))
    assert suite.labels == tuple(label for label in range(6) for _ in range(12))
    assert set(suite.nuisances["terms"]) == {float(terms)}
    assert all(text.count(", ") == terms - 1 for text in suite.texts)


@given(st.integers(10, 399))
def test_a_longer_text_goes_on_where_the_shorter_one_ends(terms: int) -> None:
    short, long = length_suite(terms), length_suite(terms + 1)
    assert all(b.startswith(a + ", ") for a, b in zip(short.texts, long.texts, strict=True))
    assert short.blocks == long.blocks
    assert short.nuisances["window"] == long.nuisances["window"]


def test_texts_hold_the_terms_at_their_positions() -> None:
    suite = length_suite(400)
    for i in (0, 13, 40, 71):
        family, _, start = suite.blocks[i].partition(":length:")
        expected = FAMILIES[family].terms(int(start), int(start) + 400)
        assert suite.texts[i] == ", ".join(map(str, expected))
    assert len(set(suite.blocks)) == len(suite.texts) == len(set(suite.texts))


def test_positions_lie_behind_everything_else_and_do_not_meet() -> None:
    assert SPACING >= 400 + 10
    for name in families_of("six"):
        for purpose in ("training", "paper", "large", "selection"):
            last = max(window.start + len(window.terms) for window in windows(name, purpose))  # type: ignore[arg-type]
            assert last + 10 <= FIRST, (name, purpose)
    starts = sorted({int(block.rpartition(":")[2]) for block in length_suite(10).blocks})
    assert starts == [FIRST + SPACING * k for k in range(WINDOWS)]


@pytest.mark.parametrize("label", range(6))
def test_no_ten_terms_stand_in_a_text_of_another_suite_of_the_same_family(label: int) -> None:
    def tens(suite: Suite) -> set[tuple[str, ...]]:
        texts = [text.split(", ") for text, own in zip(suite.texts, suite.labels, strict=True) if own == label]
        return {tuple(terms[i : i + 10]) for terms in texts for i in range(len(terms) - 9)}

    known = set().union(*(tens(SUITES[name]()) for name in ("paper", "large", "selection")))
    assert len(known) > 1000
    assert not tens(length_suite(400)) & known


def test_another_separator() -> None:
    assert length_suite(30, separator=" ") == separated(length_suite(30), " ")
    with pytest.raises(ValueError, match="--separator: expected some text without digits"):
        length_suite(30, separator="0")


@pytest.mark.parametrize("terms", [9, 0, -50, 401, 10_000, 50.0, True, "50", None])
def test_a_length_out_of_range_is_refused(terms: Any) -> None:
    with pytest.raises(ValueError, match=f"terms: expected 10 to 400 terms a text, got {terms!r}; 50 is the paper's"):
        length_suite(terms)
