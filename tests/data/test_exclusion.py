"""What pretraining may not see: the product's own check on planted cases, and drawn texts against a check written anew."""

import random
from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import sqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.exclusion import BOUND, excluded_as
from data.families import FAMILIES, families_of
from data.rules import draw_texts
from data.sequences import windows
from data.suites import SUITES

LIMIT = 20_000
LINES = (*families_of("six"), *families_of("held-out"))
KNOWN = 4000
"""Terms of each line that the hypothesis below draws from."""


def prime_factors_and_divisor_sums() -> tuple[list[int], list[int]]:
    """Numbers of prime factors with multiplicity, and sums of divisors, by loops over multiples."""
    many, sums = [0] * LIMIT, [0] * LIMIT
    for d in range(1, LIMIT):
        for multiple in range(d, LIMIT, d):
            sums[multiple] += d
    for p in range(2, LIMIT):
        if sums[p] == p + 1:
            power = p
            while power < LIMIT:
                for multiple in range(power, LIMIT, power):
                    many[multiple] += 1
                power *= p
    return many, sums


def recaman() -> list[int]:
    terms, seen = [0], {0}
    for n in range(1, 9000):
        back = terms[-1] - n
        terms.append(terms[-1] + n if back <= 0 or back in seen else back)
        seen.add(terms[-1])
    return terms


def lucky() -> list[int]:
    survivors, place = list(range(1, LIMIT, 2)), 1
    while place < len(survivors) and survivors[place] <= len(survivors):
        step = survivors[place]
        survivors = [number for i, number in enumerate(survivors, start=1) if i % step]
        place += 1
    return survivors


def ulam(limit: int = 8000) -> list[int]:
    terms, ways = [1], [0] * (2 * limit)
    for n in range(2, limit):
        if n == 2 or ways[n] == 1:
            for term in terms:
                ways[n + term] += 1
            terms.append(n)
    return terms


def happy(n: int) -> bool:
    seen: set[int] = set()
    while n not in seen:
        seen.add(n)
        n = sum(int(digit) ** 2 for digit in str(n))
    return n == 1


@lru_cache(maxsize=1)
def lines() -> dict[str, list[int]]:
    many, sums = prime_factors_and_divisor_sums()
    whole = range(1, LIMIT)
    return {
        "consecutive": list(whole),
        "even": [n for n in whole if n % 2 == 0],
        "odd": [n for n in whole if n % 2],
        "primes": [n for n in whole if many[n] == 1],
        "recaman": recaman(),
        "composites": [n for n in whole if many[n] > 1],
        "semiprimes": [n for n in whole if many[n] == 2],
        "lucky": lucky(),
        "ulam": ulam(),
        "happy": [n for n in whole if happy(n)],
        "lower_wythoff": [int(n * (1 + sqrt(5)) / 2) for n in range(1, 9000)],
        "abundant": [n for n in whole if sums[n] - n > n],
        "evil": [n for n in range(LIMIT) if bin(n).count("1") % 2 == 0],
        "palindromes": [n for n in range(LIMIT) if str(n) == str(n)[::-1]],
        "pentagonal": [sum(3 * k - 2 for k in range(1, n + 1)) for n in range(115)],
        "divisor_sums": sums[1:3000],
    }


def pieces(terms: Sequence[int], length: int) -> Iterator[str]:
    return (" ".join(map(str, terms[at : at + length])) for at in range(len(terms) - length + 1))


@lru_cache(maxsize=1)
def forbidden() -> tuple[dict[str, str], dict[str, str]]:
    """Five terms of a line -> its name; ten terms of an evaluation window -> its suite."""
    fives = {piece: name for name, terms in lines().items() for piece in pieces(terms, 5)}
    tens = {
        piece: name
        for name, make in SUITES.items()
        for text in make().texts
        for piece in pieces([int(term) for term in text.split(",")], 10)
    }
    return fives, tens


def found_in(text: str) -> str | None:
    """The independent check: which forbidden thing stands in ``text``."""
    terms = [int(term) for term in text.split(",")]
    for at in range(len(terms) - 4):
        steps = {terms[i + 1] - terms[i] for i in range(at, at + 4)}
        if len(steps) == 1 and steps <= {-2, -1, 1, 2}:
            return "arithmetic step 1 or 2"
    fives, tens = forbidden()
    for order in (terms, terms[::-1]):
        for table, length in ((fives, 5), (tens, 10)):
            for piece in pieces(order, length):
                if piece in table:
                    return f"{table[piece]}: {piece}"
    return None


@pytest.mark.parametrize("seed", range(8))
def test_drawn_texts_hold_nothing_forbidden(seed: int) -> None:
    rng = random.Random(f"exclusion test {seed}")
    drawn = [text for _ in range(60) for text in draw_texts(rng, per_rule=1 + seed % 2)[1]]
    assert len(drawn) >= 60
    assert {text: reason for text in drawn if (reason := found_in(text))} == {}


def test_the_independent_check_finds_what_is_there() -> None:
    """Guards the test above against a check that never fires; the broad suite is caught by its windows only."""
    for name, make in SUITES.items():
        missed = [text for text in make().texts if found_in(text) is None]
        assert missed == [], name
    assert found_in("17, 30, 28, 26, 24, 22, 5") == "arithmetic step 1 or 2"
    assert found_in("3, 6, 9, 12, 15, 18, 21") is None


def test_the_two_checks_know_the_same_lines() -> None:
    assert set(lines()) == set(LINES)
    for name, terms in lines().items():
        assert tuple(terms[:500]) == FAMILIES[name].terms(0, len(terms[:500])), name


@pytest.mark.parametrize("suite", SUITES)
def test_every_text_of_every_suite_is_refused_forwards_and_backwards(suite: str) -> None:
    for text in SUITES[suite]().texts:
        terms = [int(term) for term in text.split(", ")]
        assert excluded_as(terms) is not None
        assert excluded_as(terms[::-1]) is not None


@settings(deadline=None, max_examples=300)
@given(
    name=st.sampled_from(LINES),
    at=st.integers(0, KNOWN - 5),
    backwards=st.booleans(),
    before=st.lists(st.integers(0, 9_999_999), max_size=6),
    after=st.lists(st.integers(0, 9_999_999), max_size=6),
)
def test_five_terms_of_a_line_are_refused_wherever_they_stand(
    name: str, at: int, backwards: bool, before: list[int], after: list[int]
) -> None:
    known = 3000 if name == "divisor_sums" else 290 if name == "pentagonal" else KNOWN
    at %= known - 5
    run = FAMILIES[name].terms(at, at + 5)
    if name in ("palindromes", "pentagonal") and run[-1] >= BOUND:
        return
    assert excluded_as([*before, *(run[::-1] if backwards else run), *after]) is not None


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        ([900, 17, 101, 103, 107, 109, 113, 4, 4], "family primes"),
        ([900, 17, 113, 109, 107, 103, 101, 4, 4], "family primes"),
        ([3, 50, 48, 46, 44, 42, 9], "step 2"),
        ([3, 77, 76, 75, 74, 73, 9], "step 1"),
        ([1_000_001, 1_000_003, 1_000_005, 1_000_007, 1_000_009], "step 2"),
        ([7, 4998, 5000, 5001, 5002, 5004, 7], "family composites"),
        ([7, *FAMILIES["recaman"].terms(8000, 8005), 7], "family recaman"),
        ([7, *FAMILIES["divisor_sums"].terms(700, 705), 7], "family divisor_sums"),
        (windows("lucky", "held-out")[3].terms, "family lucky"),
        (windows("ulam", "held-out")[11].terms[20:26], "family ulam"),
        ([1, *windows("cubes", "broad")[2].terms[5:15], 1], "window of suite broad"),
        ([1, *windows("random_uniform", "broad")[0].terms[30:40][::-1], 1], "window of suite broad"),
    ],
)
def test_planted_runs_are_named(terms: Sequence[int], reason: str) -> None:
    assert excluded_as(terms) == reason


@pytest.mark.parametrize(
    "terms",
    [
        [3 * n for n in range(2000, 2050)],
        [n * n for n in range(40)],
        [5 * n + 2 for n in range(50)],
        [101, 103, 107, 109, 112],  # four primes in a row, then none
        [40, 42, 44, 46, 49],
        [5, 7, 6, 8, 7, 9, 8, 10],
        windows("cubes", "broad")[2].terms[5:14],  # nine terms of a window
        windows("cubes", "training")[0].terms,
        [],
        [7],
        [10**30, 3, 10**31],
    ],
)
def test_what_only_comes_near_is_let_through(terms: Sequence[int]) -> None:
    assert excluded_as(terms) is None


def test_every_broad_family_keeps_training_windows_that_pretraining_may_read() -> None:
    for name in families_of("broad"):
        found = windows(name, "training")[::7] if FAMILIES[name].run is None else windows(name, "training")
        assert any(excluded_as(window.terms) is None for window in found), name
