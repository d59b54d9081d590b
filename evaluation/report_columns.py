"""The table of a report: which columns, in which groups, and how a number is printed.

The Markdown and the HTML writer show the same columns of the same rows; nothing is computed here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DASH = "–"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One numeric column: where its value lies in a row, and how to read it."""

    group: str
    """Heading shared by neighbouring columns."""
    title: str
    """Its own heading."""
    path: tuple[str, ...]
    """Keys from the row to the number."""
    better: str
    """An arrow towards the better end, or nothing where there is none."""
    decimals: int
    """Digits after the point."""
    meaning: str
    """One sentence for the reader."""


_PAPER = "Paper suite"
_RETENTION = "Kept of the base"
_FIXED = (
    Column(
        group=_PAPER,
        title="Silhouette",
        path=("silhouette_true",),
        better="↑",
        decimals=3,
        meaning="Separation of the six families, true labels; −1 to 1.",
    ),
    Column(
        group=_PAPER,
        title="by chance",
        path=("null", "mean"),
        better="",
        decimals=3,
        meaning="Mean silhouette of the same embeddings under shuffled labels: the zero to compare with.",
    ),
    Column(
        group=_PAPER,
        title="z",
        path=("null", "z"),
        better="↑",
        decimals=1,
        meaning="Distance of the silhouette from chance, in standard deviations of the shuffles.",
    ),
    Column(
        group=_PAPER,
        title="p",
        path=("null", "p"),
        better="↓",
        decimals=3,
        meaning="Share of shuffles that score as high; above 0.05 the silhouette is no better than chance.",
    ),
    Column(
        group=_PAPER,
        title="Davies–Bouldin",
        path=("davies_bouldin_true",),
        better="↓",
        decimals=2,
        meaning="Scatter of the families over the distance of their centres, true labels; from 0.",
    ),
    Column(
        group=_PAPER,
        title="Silhouette, KMeans",
        path=("silhouette_kmeans",),
        better="↑",
        decimals=3,
        meaning="Silhouette of the clusters that KMeans finds, whatever they are; not a measure of the families.",
    ),
    Column(
        group=_PAPER,
        title="Davies–Bouldin, KMeans",
        path=("davies_bouldin_kmeans",),
        better="↓",
        decimals=2,
        meaning="Davies–Bouldin of the clusters that KMeans finds.",
    ),
)
_KEPT = (
    Column(
        group=_RETENTION,
        title="CKA",
        path=("retention", "cka"),
        better="↑",
        decimals=3,
        meaning="Debiased linear CKA to the base on the broad suite; 1 is the base, about 0 is unrelated.",
    ),
    Column(
        group=_RETENTION,
        title="RSA",
        path=("retention", "rsa"),
        better="↑",
        decimals=3,
        meaning="Spearman correlation of all pairwise distances with the base's; 1 is the base.",
    ),
    Column(
        group=_RETENTION,
        title="kNN",
        path=("retention", "knn"),
        better="↑",
        decimals=3,
        meaning="Share of the 10 nearest neighbours kept from the base; the least noisy of the four.",
    ),
    Column(
        group=_RETENTION,
        title="Procrustes",
        path=("retention", "procrustes"),
        better="↑",
        decimals=3,
        meaning="Agreement with the base after the best rotation; unrelated embeddings can score well above 0.",
    ),
)
_SUITES = {
    "large": "Fresh windows of the six families, disjoint from training: where differences can be resolved.",
    "held-out": "Families that no training stage saw.",
    "matched": "Families matched for parity, gaps and length, where trivial features fail.",
}


def columns(rows: Sequence[Mapping[str, Any]]) -> tuple[Column, ...]:
    """The columns for these rows: the paper's, one silhouette for each suite that occurs, retention."""
    found = [suite for row in rows for suite in row["suites"] if not suite.endswith("_reason")]
    names = [suite for suite in _SUITES if suite in found]
    names += [suite for suite in dict.fromkeys(found) if suite not in _SUITES]
    suites = tuple(
        Column(
            group="Other suites",
            title=f"Silhouette, {name}",
            path=("suites", name, "silhouette_true"),
            better="↑",
            decimals=3,
            meaning=_SUITES.get(name, "Silhouette of the labels of this suite."),
        )
        for name in names
    )
    return _FIXED + suites + _KEPT


def cell(row: Mapping[str, Any], column: Column) -> tuple[float | None, str]:
    """The number of a row in a column, or None and why it is missing."""
    parent: Mapping[str, Any] = row
    for key in column.path[:-1]:
        if key not in parent:
            return None, "not measured"
        if parent[key] is None:
            return None, str(parent[f"{key}_reason"])
        parent = parent[key]
    key = column.path[-1]
    return (None, str(parent[f"{key}_reason"])) if parent[key] is None else (float(parent[key]), "")


def number(value: float | None, decimals: int) -> str:
    """A number for a table: fixed decimals, a true minus sign, no "−0.000"; a dash for None.

    Example:
        >>> number(-0.0923, 3), number(-0.0001, 3), number(None, 3)
        ('−0.092', '0.000', '–')
    """
    if value is None:
        return DASH
    text = f"{value:.{decimals}f}"
    return f"{0.0:.{decimals}f}" if float(text) == 0 else text.replace("-", "−")


def one_line(text: object) -> str:
    """Text for a cell: line breaks, tabs and runs of blanks become one blank.

    Example:
        >>> one_line("two\\n\\tlines")
        'two lines'
    """
    return " ".join(str(text).split())


CAVEATS = (
    "Zero is not the null. Shuffled labels score below 0: compare a silhouette with the column “by chance”.",
    "The paper suite has 24 texts. Differences under about 0.05 on it are not resolvable; use the larger suites.",
    "The control of a SLERP is the linear merge at the same t. What counts is the excess over it at equal retention.",
    "KMeans clusters may follow magnitude or length instead of the families; their scores do not say which.",
    "Retention is measured on families outside the six, so that it does not count the intended change as a loss.",
)
