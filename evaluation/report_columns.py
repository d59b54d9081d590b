"""The table of a report: which columns, in which groups, and what a reader must know of them.

The Markdown and the HTML writer show the same columns of the same rows; nothing is computed here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

NOT_MEASURED = "not measured"
PAPER, SUITES, KEPT = "Paper suite", "Other suites", "Kept of the base"
FRONT_GROUPS = (PAPER, SUITES, KEPT)
"""The groups that a reader sees first; the page shows the others when asked."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One numeric column: where its value lies in a row, and how to read it."""

    group: str
    """Heading shared by neighbouring columns."""
    title: str
    """Its own heading."""
    path: tuple[str, ...]
    """Keys from the row to the number."""
    better: str = ""
    """An arrow towards the better end, or nothing where there is none."""
    decimals: int = 3
    """Digits after the point."""
    meaning: str
    """One sentence for the reader."""


def _column(group: str, title: str, path: str, better: str, decimals: int, meaning: str) -> Column:
    return Column(
        group=group, title=title, path=tuple(path.split(".")), better=better, decimals=decimals, meaning=meaning
    )


_FIXED = tuple(
    _column(PAPER, *cells)
    for cells in (
        ("Silhouette", "silhouette_true", "↑", 3, "Separation of the six families, true labels; −1 to 1."),
        ("by chance", "null.mean", "", 3, "Mean silhouette of the same embeddings under shuffled labels: the zero to compare with."),
        ("z", "null.z", "↑", 1, "Distance of the silhouette from chance, in standard deviations of the shuffles."),
        ("p", "null.p", "↓", 3, "Share of shuffles that score as high; above 0.05 the silhouette is no better than chance."),
        ("Davies–Bouldin", "davies_bouldin_true", "↓", 2, "Scatter of the families over the distance of their centres; from 0."),
        ("Silhouette, KMeans", "silhouette_kmeans", "↑", 3, "Silhouette of what KMeans finds; not a measure of the families."),
        ("Davies–Bouldin, KMeans", "davies_bouldin_kmeans", "↓", 2, "Davies–Bouldin of the clusters that KMeans finds."),
    )
)  # fmt: skip
_KEPT = tuple(
    _column(KEPT, *cells)
    for cells in (
        ("CKA", "retention.cka", "↑", 3, "Debiased linear CKA to the base on the broad suite; 1 is the base, about 0 is unrelated."),
        ("RSA", "retention.rsa", "↑", 3, "Spearman correlation of all pairwise distances with the base's; 1 is the base."),
        ("kNN", "retention.knn", "↑", 3, "Share of the 10 nearest neighbours kept from the base; the least noisy of the four."),
        ("Procrustes", "retention.procrustes", "↑", 3, "Agreement with the base after the best rotation; 1 is the base."),
    )
)  # fmt: skip
_SPREAD = tuple(
    _column("Chance and spread", *cells)
    for cells in (
        ("z within windows", "null_within.z", "↑", 1, "z of the silhouette with labels shuffled within the windows of one number only."),
        ("p within windows", "null_within.p", "↓", 3, "Share of those that score as high; exact where embeddings follow the windows."),
        ("95 % from", "interval.low", "", 3, "Lower end of the 95 % interval of the silhouette, from fresh windows."),
        ("95 % to", "interval.high", "", 3, "Upper end of the 95 % interval of the silhouette, from fresh windows."),
        ("jackknife sd", "jackknife.sd", "", 3, "Spread of the silhouette when a window is left out; not an interval."),
        ("KMeans by chance", "null_kmeans.silhouette.mean", "", 3, "Mean KMeans silhouette of Gaussian clouds of the same spectrum."),
        ("97.5 % of chance", "null_kmeans.silhouette.high", "", 3, "What a KMeans silhouette must pass to show any clusters."),
        ("KMeans p", "null_kmeans.silhouette.p", "↓", 3, "Share of the Gaussian clouds whose KMeans silhouette is as high."),
        ("KMeans results", "kmeans_spread.distinct", "↓", 0, "Distinct results of KMeans over its seeds; 1 is stable."),
        ("KMeans sd", "kmeans_spread.silhouette.sd", "↓", 3, "Spread of the KMeans silhouette over its seeds."),
    )
)  # fmt: skip
_FOLLOW = tuple(
    _column("Neighbours and clusters", *cells)
    for cells in (
        ("1-NN", "nn1_accuracy", "↑", 3, "Texts whose nearest neighbour outside their own block is of their family."),
        ("5-NN", "knn5_accuracy", "↑", 3, "The same by a vote of five neighbours."),
        ("probe", "linear_probe_accuracy", "↑", 3, "Accuracy of a linear classifier on windows that it was not fitted to."),
        ("ARI", "kmeans_ari", "↑", 3, "Agreement of the KMeans clusters with the families, corrected for chance."),
        ("NMI", "kmeans_nmi", "↑", 3, "Normalised mutual information of clusters and families; not corrected for chance."),
        ("AMI", "kmeans_ami", "↑", 3, "Mutual information of clusters and families, corrected for chance; 0 is chance."),
        ("matched", "confusion.accuracy", "↑", 3, "Share of texts in the cluster that is matched to their family."),
        ("Silhouette, cosine", "silhouette_cosine", "↑", 3, "Silhouette of the families by cosine distance."),
        ("Calinski–Harabasz", "calinski_harabasz_true", "↑", 1, "Scatter between the families over scatter within; from 0."),
        ("Calinski–Harabasz, KMeans", "calinski_harabasz_kmeans", "↑", 1, "The same of the KMeans clusters."),
    )
)  # fmt: skip
_GEOMETRY = tuple(
    _column("Geometry", *cells)
    for cells in (
        ("dimensions", "dimensions", "", 0, "Width of the embeddings."),
        ("anisotropy", "geometry.anisotropy", "", 3, "Mean cosine of two texts: 0 spreads in all directions, 1 points in one."),
        ("effective rank", "geometry.effective_rank", "", 1, "Number of directions that the embeddings use."),
        ("uniformity", "geometry.uniformity", "↓", 3, "How evenly the sphere is filled; 0 is collapsed."),
        ("alignment", "geometry.alignment", "↓", 3, "Mean squared distance of two texts of one family on the sphere."),
    )
)  # fmt: skip
_SUITES = {
    "large": "Fresh windows of the six families, disjoint from training: where differences can be resolved.",
    "held-out": "Families that no training stage saw.",
    "matched": "Families matched for parity, gaps and length, where trivial features fail.",
}
_SUITE_DETAILS = (
    ("95 % from", ("interval", "low"), "", "Lower end of the 95 % interval of its silhouette."),
    ("95 % to", ("interval", "high"), "", "Upper end of the 95 % interval of its silhouette."),
    ("by chance", ("null", "mean"), "", "Mean silhouette under shuffled labels."),
    ("1-NN", ("nn1_accuracy",), "↑", "Nearest neighbours outside the own block that are of the same family."),
    ("probe", ("linear_probe_accuracy",), "↑", "Accuracy of a linear classifier on windows that it was not fitted to."),
    ("AMI", ("kmeans_ami",), "↑", "Agreement of the KMeans clusters with the families, corrected for chance."),
)


def columns(rows: Sequence[Mapping[str, Any]]) -> tuple[Column, ...]:
    """The columns for these rows: the paper's and retention always, the others where a row has something to show."""
    others = [
        *_SPREAD,
        *_FOLLOW,
        *_GEOMETRY,
        *_suite_details(rows),
        *_by_key(rows, "Silhouette by family", "silhouette_by_family"),
    ]
    others += _by_key(rows, "Benchmarks", "benchmarks")
    measured = [column for column in others if any(cell(row, column)[1] != NOT_MEASURED for row in rows)]
    return (*_FIXED, *_suites(rows), *_KEPT, *measured)


def cell(row: Mapping[str, Any], column: Column) -> tuple[float | None, str]:
    """The number of a row in a column, or None and why it is missing."""
    parent: Any = row
    for key in column.path:
        if not isinstance(parent, Mapping) or key not in parent:
            return None, str(row.get("error") or NOT_MEASURED)
        if parent[key] is None:
            return None, str(parent.get(f"{key}_reason", "undefined"))
        parent = parent[key]
    return float(parent), ""


def _suite_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    found = [suite for row in rows for suite in row["suites"] if not suite.endswith("_reason")]
    return [
        *(name for name in _SUITES if name in found),
        *(name for name in dict.fromkeys(found) if name not in _SUITES),
    ]


def _suites(rows: Sequence[Mapping[str, Any]]) -> Iterator[Column]:
    for name in _suite_names(rows):
        yield Column(
            group=SUITES,
            title=f"Silhouette, {name}",
            path=("suites", name, "silhouette_true"),
            better="↑",
            meaning=_SUITES.get(name, "Silhouette of the labels of this suite."),
        )


def _suite_details(rows: Sequence[Mapping[str, Any]]) -> Iterator[Column]:
    for name in _suite_names(rows):
        for title, path, better, meaning in _SUITE_DETAILS:
            column = Column(group=f"Suite {name}", title=title, path=path, better=better, meaning=meaning)
            yield replace(column, path=("suites", name, *path))


def _by_key(rows: Sequence[Mapping[str, Any]], group: str, key: str) -> Iterator[Column]:
    """A column for each key that a mapping has in any row."""
    found = [name for row in rows for name, value in (row.get(key) or {}).items() if not isinstance(value, str)]
    meaning = "Main score of this benchmark." if key == "benchmarks" else "Mean silhouette of the texts of this family."
    for name in dict.fromkeys(found):
        yield Column(group=group, title=name, path=(key, name), better="↑", meaning=meaning)


CAVEATS = (
    "Zero is not the null. Shuffled labels score below 0: compare a silhouette with the column “by chance”.",
    "The paper suite has 24 texts. Differences under about 0.05 on it are not resolvable; use the larger suites.",
    "A 95 % interval comes from fresh windows. A jackknife is the spread of one suite, not an interval; a bootstrap would "
    "be biased, because repeated texts have distance 0.",
    "Baselines read digits and gaps, not meaning: a model below the histogram of last digits has not shown more than that.",
    "KMeans clusters may follow magnitude or length instead of the families; their scores do not say which, the table of "
    "what the clusters follow does. A Gaussian cloud has a KMeans silhouette above 0, too.",
    "The control of a SLERP is the linear merge at the same t. What counts is the excess over it at equal retention.",
    "Retention is measured on families outside the six, so that it does not count the intended change as a loss.",
    "Whatever chooses (an epoch, a coefficient, a checkpoint) uses windows of its own that no column here contains. "
    "Picking the best of many rows of this table is a choice as well: its score is too high by the luck of the winner.",
    "Published rows are the numbers of the paper, not measured here; prompts, precision and library versions may differ.",
)
