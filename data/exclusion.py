"""What pretraining must not see, told by content and not by name.

A sequence is refused when five of its consecutive terms, forwards or backwards, run along one of the six families or a
held-out one (arithmetic steps 1 and 2 anywhere among them), or when ten of its consecutive terms stand in a window of any suite.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from data.families import FAMILIES, Family, families_of
from data.suites import SUITES

RUN = 5
"""So many consecutive terms along a family count as that family."""
SHARED = 10
"""So many consecutive terms of an evaluation window count as that window."""
BOUND = 1 << 17
"""Families that thin out irregularly are known up to this value; the rules that could meet them stay below it."""


def excluded_as(terms: Sequence[int]) -> str | None:
    """Why ``terms`` may not be pretrained on, or None.

    >>> excluded_as([40, 42, 44, 46, 48, 51]), excluded_as([3, 6, 9, 12, 15, 18])
    ('step 2', None)
    """
    values = np.asarray([min(term, 1 << 60) for term in terms], dtype=np.int64)
    steps = np.diff(values)
    for step in (1, 2):
        if _has_run(np.abs(steps) == step, RUN - 1) and (
            _has_run(steps == step, RUN - 1) or _has_run(steps == -step, RUN - 1)
        ):
            return f"step {step}"
    inside = values[(values >= 0) & (values < BOUND)]
    for name, ranks in _increasing_families().items():
        if len(inside) >= RUN and _follows(values, ranks):
            return f"family {name}"
    for grams, reason, length in ((_family_grams(), "family", RUN), (_suite_grams(), "window of suite", SHARED)):
        for direction in (tuple(terms), tuple(reversed(terms))):
            for gram in _grams(direction, length):
                if gram in grams:
                    return f"{reason} {grams[gram]}"
    return None


def _has_run(flags: np.ndarray, length: int) -> bool:
    """Whether ``length`` flags in a row are true."""
    if len(flags) < length:
        return False
    sums = np.cumsum(np.concatenate(([0], flags)))
    return bool((sums[length:] - sums[:-length] == length).any())


def _follows(values: np.ndarray, ranks: np.ndarray) -> bool:
    """Whether RUN terms in a row are neighbours in the family, upwards or downwards."""
    known = (values >= 0) & (values < len(ranks))
    rank = np.where(known, ranks[np.where(known, values, 0)], -1)
    member = (rank[1:] >= 0) & (rank[:-1] >= 0)
    return any(_has_run(member & (np.diff(rank) == direction), RUN - 1) for direction in (1, -1))


def _grams(terms: Sequence[int], length: int) -> Iterable[tuple[int, ...]]:
    return (tuple(terms[i : i + length]) for i in range(len(terms) - length + 1))


def _up_to_bound(family: Family) -> tuple[int, ...]:
    """The family's terms below BOUND; of Ulam's numbers, which cost a search each, four times what evaluation reads."""
    count = 4096 if family.name == "ulam" else 16
    while family.name != "ulam" and family.terms(count - 1, count)[0] < BOUND:
        count *= 2
    return tuple(term for term in family.terms(0, count) if term < BOUND)


@lru_cache(maxsize=1)
def _increasing_families() -> dict[str, np.ndarray]:
    """{family: rank of every value below BOUND, -1 for non-members}, for the strictly increasing families."""
    tables: dict[str, np.ndarray] = {}
    for name in (*families_of("six"), *families_of("held-out")):
        if name in ("recaman", "divisor_sums"):
            continue
        terms = _up_to_bound(FAMILIES[name])
        tables[name] = np.full(BOUND, -1, dtype=np.int64)
        tables[name][list(terms)] = np.arange(len(terms))
    return tables


@lru_cache(maxsize=1)
def _family_grams() -> dict[tuple[int, ...], str]:
    """Runs of the two families that rise and fall, four times as far as evaluation reads them."""
    return {
        gram: name
        for name, count in (("recaman", 36_000), ("divisor_sums", 3_000))
        for gram in _grams(FAMILIES[name].terms(0, count), RUN)
    }


@lru_cache(maxsize=1)
def _suite_grams() -> dict[tuple[int, ...], str]:
    return {
        gram: suite
        for suite, make in SUITES.items()
        for text in make().texts
        for gram in _grams(tuple(map(int, text.split(", "))), SHARED)
    }
