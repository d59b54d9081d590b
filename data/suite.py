"""Suite: labelled texts with what else is known of them."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log10
from statistics import median
from types import MappingProxyType

from data.sequences import SEPARATOR, Window

NUMBER_NUISANCES = ("magnitude", "window", "length", "terms", "parity")


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


def suite_of_windows(name: str, found: Mapping[str, Iterable[Window]], *, separator: str = SEPARATOR) -> Suite:
    """A suite of number sequences, from the windows of each family."""
    rows = [
        (label, number, window) for label, windows in enumerate(found.values()) for number, window in enumerate(windows)
    ]
    texts = tuple(separator.join(map(str, window.terms)) for _, _, window in rows)
    return Suite(
        name=name,
        texts=texts,
        labels=tuple(label for label, _, _ in rows),
        families=tuple(found),
        blocks=tuple(window.block for _, _, window in rows),
        nuisances=MappingProxyType(
            {
                "magnitude": tuple(median(log10(1 + term) for term in window.terms) for _, _, window in rows),
                "window": tuple(float(number) for _, number, _ in rows),
                "length": tuple(float(len(text)) for text in texts),
                "terms": tuple(float(len(window.terms)) for _, _, window in rows),
                "parity": tuple(sum(term % 2 for term in window.terms) / len(window.terms) for _, _, window in rows),
            }
        ),
    )


def with_nuisance(suite: Suite, name: str, values: Sequence[float]) -> Suite:
    """The suite with one more nuisance, such as the number of tokens that a model's tokenizer makes of each text.

    Args:
        suite: Any suite; it stays as it is.
        name: Of the nuisance; none that the suite has.
        values: One finite number a text.

    Raises:
        ValueError: a name that is taken or empty, another number of values than texts, or one that is not finite.

    Example:
        >>> suite = Suite(name="two", texts=("1, 2", "3"), labels=(0, 1), families=("a", "b"), blocks=("x", "y"), nuisances={})
        >>> dict(with_nuisance(suite, "tokens", [3, 1]).nuisances)
        {'tokens': (3.0, 1.0)}
    """
    if not name or name in suite.nuisances:
        raise ValueError(
            f"nuisance {name!r}: expected a new name, got one of {', '.join(suite.nuisances) or 'no letters'}; rename it"
        )
    column = tuple(float(value) for value in values)
    if len(column) != len(suite.texts):
        raise ValueError(
            f"nuisance {name!r}: expected {len(suite.texts)} values, one for each text of suite {suite.name}, "
            f"got {len(column)}; align the two"
        )
    if strange := [i for i, value in enumerate(column) if not math.isfinite(value)]:
        raise ValueError(
            f"nuisance {name!r}: expected finite values, got {column[strange[0]]} for text {strange[0]}; leave the nuisance out"
        )
    return replace(suite, nuisances=MappingProxyType({**suite.nuisances, name: column}))


def separated(suite: Suite, separator: str) -> Suite:
    """The same suite with something else between the terms; ``length`` is counted anew.

    Nuisances that were added to the suite are left out, since they may depend on the text: add them afterwards.

    Args:
        suite: Of number sequences.
        separator: Any text without digits and without "-", which would read as part of a number.

    Raises:
        ValueError: an empty or ambiguous separator, or a suite of other texts than numbers.

    Example:
        >>> found = {"f": [Window(family="f", block="f:0", start=0, terms=(7, 8, 9))]}
        >>> separated(suite_of_windows("one", found), " ").texts
        ('7 8 9',)
    """
    if not separator or "-" in separator or any(character.isnumeric() for character in separator):
        raise ValueError(
            f"--separator: expected some text without digits and '-', got {separator!r}; ', ' is the paper's"
        )
    if "terms" not in suite.nuisances:
        raise ValueError(
            f"--separator: expected a suite of number sequences, got {suite.name}, whose texts are kept as they are; "
            "leave the separator out or choose another suite"
        )
    found = [re.findall(r"-?[0-9]+", text) for text in suite.texts]
    assert [float(len(terms)) for terms in found] == list(suite.nuisances["terms"]), suite.name
    texts = tuple(separator.join(terms) for terms in found)
    kept = {name: suite.nuisances[name] for name in NUMBER_NUISANCES}
    return replace(
        suite,
        texts=texts,
        nuisances=MappingProxyType(kept | {"length": tuple(float(len(text)) for text in texts)}),
    )
