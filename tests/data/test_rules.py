"""Random rules: reproducible, in range, and pairs that share a rule and not their terms."""

import hashlib
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.rules import LARGEST, Rule, draw_rule, draw_texts, read_window

STREAM_SHA256 = "d946415b67be9de0b127e2d9733112ef956af0c5f3513bffa88cc8cbe3ed0f9c"
"""Of 200 texts; tiny-llm's weights can be made again only while the stream stays the same."""


def terms_of(text: str) -> list[int]:
    return [int(term) for term in text.split(", ")]


def test_the_stream_of_texts_is_the_one_that_tiny_llm_was_made_from() -> None:
    rng = random.Random("0 language 1")
    texts = [draw_texts(rng)[1][0] for _ in range(200)]
    assert hashlib.sha256("\n".join(texts).encode()).hexdigest() == STREAM_SHA256


@settings(deadline=None, max_examples=30)
@given(st.integers(), st.integers(1, 3))
def test_draws_are_a_function_of_the_seed(seed: int, per_rule: int) -> None:
    once, again = (draw_texts(random.Random(seed), per_rule=per_rule) for _ in range(2))
    assert once == again
    assert len(once[1]) == per_rule


def test_different_seeds_draw_different_texts() -> None:
    assert len({draw_texts(random.Random(seed))[1][0] for seed in range(100)}) == 100


@pytest.mark.parametrize("seed", range(4))
def test_texts_are_of_eight_to_fifty_terms_of_at_most_seven_digits(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(60):
        terms = terms_of(draw_texts(rng)[1][0])
        assert 8 <= len(terms) <= 50
        assert min(terms) >= 0
        assert max(terms) <= LARGEST == 9_999_999


@pytest.mark.parametrize("seed", range(4))
def test_two_texts_of_a_rule_share_no_three_terms_in_a_row(seed: int) -> None:
    rng = random.Random(f"pairs {seed}")
    for _ in range(40):
        _, (left, right) = draw_texts(rng, per_rule=2)
        triples = [{tuple(terms[i : i + 3]) for i in range(len(terms) - 2)} for terms in map(terms_of, (left, right))]
        assert not triples[0] & triples[1]


def test_the_two_texts_of_a_pair_obey_one_rule() -> None:
    """Seen on the rules whose parameter can be read off a text: arithmetic ones, by their step."""
    rng, steps = random.Random(5), []
    while len(steps) < 10:
        kind, texts = draw_texts(rng, per_rule=2)
        if kind == "arithmetic":
            steps.append([{b - a for a, b in pairwise(terms_of(text))} for text in texts])
    assert all(left == right and len(left) == 1 for left, right in steps)
    assert len({min(left) for left, _ in steps}) > 5


def test_many_kinds_are_drawn() -> None:
    rng = random.Random(0)
    assert len({draw_rule(rng).kind for _ in range(600)}) >= 50


@given(low=st.integers(0, 50), width=st.integers(0, 5000), seed=st.integers())
def test_positions_lie_between_low_and_high(low: int, width: int, seed: int) -> None:
    asked: list[tuple[int, int]] = []

    def read(at: int, count: int) -> list[int]:
        asked.append((at, count))
        return [7 * at + 10 * i for i in range(count)]

    read_window(Rule(kind="spy", read=read, low=low, high=low + width), random.Random(seed), fewest=8, most=50)
    (at, count), *more = asked
    assert not more
    assert low <= at <= low + width
    assert 29 <= count <= 50


def test_positions_are_spread_over_magnitudes() -> None:
    asked: list[int] = []

    def read(at: int, count: int) -> list[int]:
        asked.append(at)
        return [0]

    rng, rule = random.Random(0), Rule(kind="spy", read=read, high=4000)
    for _ in range(1000):
        read_window(rule, rng)
    shares = [
        sum(low <= at < high for at in asked) / 1000 for low, high in ((0, 10), (10, 100), (100, 1000), (1000, 4001))
    ]
    assert all(0.1 < share < 0.4 for share in shares), shares


@pytest.mark.parametrize(
    ("terms", "kept"),
    [
        ([3**i for i in range(40)], 15),
        ([400 - 50 * i for i in range(40)], 9),
        ([10**i for i in range(1, 40)], None),  # six terms fit: too few
        (list(range(100, 140)), None),
    ],
    ids=["cut above seven digits", "cut below zero", "too short", "excluded"],
)
def test_a_window_is_cut_where_terms_leave_the_range_and_refused_when_short_or_excluded(
    terms: list[int], kept: int | None
) -> None:
    window = read_window(Rule(kind="fixed", read=lambda at, n: terms[:n]), random.Random(0))
    assert window == (None if kept is None else tuple(terms[:kept]))
