"""Suites: the fixed sets of texts on which embeddings are measured. Training reads none of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import log10
from statistics import median
from types import MappingProxyType

from data.families import families_of
from data.sequences import Purpose, Window, windows


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Texts with what is known of them. All fields but ``families`` have one entry a text.

    ``labels[i]`` indexes ``families``, the class names. ``blocks[i]`` names the stretch of the sequence that text i was cut
    from: neighbours of one block must not vote for each other. ``nuisances`` are properties that a model might follow
    instead of the family: ``magnitude`` (median of log10(1 + term)), ``window`` (its number within the family), ``length``
    (characters), ``terms`` (how many) and ``parity`` (share of odd terms); text that is not numbers has ``length`` only.
    """

    name: str
    texts: tuple[str, ...]
    labels: tuple[int, ...]
    families: tuple[str, ...]
    blocks: tuple[str, ...]
    nuisances: Mapping[str, tuple[float, ...]]

    def __post_init__(self) -> None:
        lengths = {len(self.labels), len(self.blocks), *(len(column) for column in self.nuisances.values())}
        assert lengths == {len(self.texts)}, f"suite {self.name}: columns of different lengths"


def _suite(name: str, families: Sequence[str], purpose: Purpose) -> Suite:
    rows: list[tuple[int, int, Window]] = [
        (label, number, window)
        for label, family in enumerate(families)
        for number, window in enumerate(windows(family, purpose))
    ]
    return Suite(
        name=name,
        texts=tuple(window.text for _, _, window in rows),
        labels=tuple(label for label, _, _ in rows),
        families=tuple(families),
        blocks=tuple(window.block for _, _, window in rows),
        nuisances=MappingProxyType(
            {
                "magnitude": tuple(median(log10(1 + term) for term in window.terms) for _, _, window in rows),
                "window": tuple(float(number) for _, number, _ in rows),
                "length": tuple(float(len(window.text)) for _, _, window in rows),
                "terms": tuple(float(len(window.terms)) for _, _, window in rows),
                "parity": tuple(sum(term % 2 for term in window.terms) / len(window.terms) for _, _, window in rows),
            }
        ),
    )


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
    }
)
