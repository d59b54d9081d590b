"""SUITES: the fixed sets of texts on which embeddings are measured. Training reads none of them."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType

from data.families import families_of
from data.matched import matched_suite
from data.sequences import Purpose, windows
from data.suite import Suite, separated, suite_of_windows, with_nuisance

__all__ = [
    "SUITES",
    "Suite",
    "broad_suite",
    "held_out_suite",
    "large_suite",
    "matched_suite",
    "paper_suite",
    "selection_suite",
    "separated",
    "with_nuisance",
]


def _suite(name: str, families: Sequence[str], purpose: Purpose) -> Suite:
    return suite_of_windows(name, {family: windows(family, purpose) for family in families})


@lru_cache(maxsize=1)
def paper_suite() -> Suite:
    """The paper's 24 texts (section 4.1): six families, first 200 terms, four windows of 50.

    >>> suite = paper_suite()
    >>> len(suite.texts), suite.texts[4][:14]
    (24, '2, 4, 6, 8, 10')
    """
    return _suite("paper", families_of("six"), "paper")


@lru_cache(maxsize=1)
def large_suite() -> Suite:
    """216 further windows of the six families, up to position 8,880: what the adaptation is meant to separate."""
    return _suite("large", families_of("six"), "large")


@lru_cache(maxsize=1)
def selection_suite() -> Suite:
    """216 windows of the six families for everything that chooses (early stopping, best stage, searches). Never reported."""
    return _suite("selection", families_of("six"), "selection")


@lru_cache(maxsize=1)
def held_out_suite() -> Suite:
    """120 windows of ten families that neither pretraining nor any training stage sees."""
    return _suite("held-out", families_of("held-out"), "held-out")


@lru_cache(maxsize=1)
def broad_suite() -> Suite:
    """Windows of the 38 broad families: where retention against the base is measured."""
    return _suite("broad", families_of("broad"), "broad")


SUITES: Mapping[str, Callable[[], Suite]] = MappingProxyType(
    {
        "paper": paper_suite,
        "large": large_suite,
        "held-out": held_out_suite,
        "broad": broad_suite,
        "selection": selection_suite,
        "matched": matched_suite,
    }
)
