"""Trivial features of the texts, measured like a model: what a separation is worth that needs no model at all.

On the paper's 24 texts a histogram of last digits separates the families better than any model of Table 2, so each report
shows these rows beside the models. The rows that read numbers find the integers wherever they stand, whatever separates
them.

Dimension names:
    n: texts
    d: features of the baseline
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

import numpy as np
from jaxtyping import Float64
from sklearn.feature_extraction.text import TfidfVectorizer

LARGEST_STEP = 10
"""Steps between neighbouring numbers are counted from 0 (and less) to this one (and more)."""

RANDOM_WIDTH = 384
"""Numbers in a random vector: the width of the small encoders."""

Features = Float64[np.ndarray, "n d"]


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A row of the report that looks at the texts without a model."""

    meaning: str
    """What it looks at, for the reader of the report."""
    numeric: bool
    """Whether it reads numbers, so that texts without numbers have none of it."""
    embed: Callable[[Sequence[str], int], Features]
    """The features, given the texts and a seed."""


def baseline_embeddings(name: str, texts: Sequence[str], *, seed: int = 0) -> Float64[np.ndarray, "n d"]:
    """The features of one baseline, in place of a model's embeddings.

    Args:
        name: a key of `BASELINES`.
        texts: n texts. The numeric baselines need an integer in each, "first-differences" two.
        seed: of "random"; the others do not depend on it.

    Returns:
        (n, d) float64. Histograms have unit Euclidean norm; a row depends on its own text alone, except under
        "char-tfidf" (document frequencies) and "random" (the position of the text).

    Raises:
        ValueError: an unknown name, no texts, or a text without the numbers or characters that the baseline reads.

    Example:
        >>> baseline_embeddings("parity", ["1, 2, 3, 4", "2 4 6"]).tolist()
        [[0.5], [0.0]]
    """
    if name not in BASELINES:
        raise ValueError(f"name: expected a baseline ({', '.join(BASELINES)}), got {name!r}; choose one of them")
    if len(texts) == 0:
        raise ValueError(f"texts: expected at least one for the baseline {name!r}, got none; give the suite's texts")
    return BASELINES[name].embed(texts, seed)


def integers(text: str) -> list[int]:
    """The integers of a text in order, whatever stands between them; a hyphen after a digit separates.

    >>> integers("3, -4;5-6 and 7\\n8")
    [3, -4, 5, 6, 7, 8]
    """
    return [int(number) for number in re.findall(r"(?<![0-9])-?[0-9]+", text)]


def _numbers(name: str, texts: Sequence[str], least: int = 1) -> list[list[int]]:
    found = [integers(text) for text in texts]
    for row, (text, numbers) in enumerate(zip(texts, found, strict=True)):
        if len(numbers) < least:
            raise ValueError(
                f"texts: the baseline {name!r} expected at least {least} integers in every text, got {len(numbers)} in "
                f"row {row} ({text[:40]!r}); leave this baseline out for texts that are not numbers"
            )
    return found


def _unit_histograms(bins: Sequence[Sequence[int]], width: int) -> Features:
    """Counts of 0..width-1, each row scaled to norm 1 as an encoder would."""
    counts = np.stack([np.bincount(row, minlength=width) for row in bins]).astype(np.float64)
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def _last_digits(texts: Sequence[str], seed: int) -> Features:
    return _unit_histograms([[abs(x) % 10 for x in row] for row in _numbers("last-digit", texts)], 10)


def _first_differences(texts: Sequence[str], seed: int) -> Features:
    rows = _numbers("first-differences", texts, least=2)
    steps = [[min(max(after - x, 0), LARGEST_STEP) for x, after in pairwise(row)] for row in rows]
    return _unit_histograms(steps, LARGEST_STEP + 1)


def _parity(texts: Sequence[str], seed: int) -> Features:
    return np.array([[sum(x % 2 for x in row) / len(row)] for row in _numbers("parity", texts)])


def _string_length(texts: Sequence[str], seed: int) -> Features:
    return np.array([[float(len(text))] for text in texts])


def _char_tfidf(texts: Sequence[str], seed: int) -> Features:
    if not any(text.strip() for text in texts):
        raise ValueError("texts: the baseline 'char-tfidf' expected characters, got blank texts only; give other texts")
    return TfidfVectorizer(analyzer="char", ngram_range=(1, 3)).fit_transform(texts).toarray()


def _random(texts: Sequence[str], seed: int) -> Features:
    return np.random.default_rng(seed).standard_normal((len(texts), RANDOM_WIDTH))


BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {
        "last-digit": Baseline(meaning="histogram of the last digits", numeric=True, embed=_last_digits),
        "first-differences": Baseline(
            meaning=f"histogram of the steps between neighbouring numbers, 0 and less to {LARGEST_STEP} and more",
            numeric=True,
            embed=_first_differences,
        ),
        "parity": Baseline(meaning="share of odd numbers", numeric=True, embed=_parity),
        "string-length": Baseline(meaning="number of characters", numeric=False, embed=_string_length),
        "char-tfidf": Baseline(
            meaning="tf-idf of the strings of one to three characters", numeric=False, embed=_char_tfidf
        ),
        "random": Baseline(meaning="a random vector for each text", numeric=False, embed=_random),
    }
)
"""The baselines by name, in the order of the report. One number for all texts (a parity that never changes) is a
collapse, whose metrics are undefined like a model's."""
