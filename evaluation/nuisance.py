"""What else the clusters and the first axes follow: magnitude, length, parity and other properties of the texts.

Dimension names:
    n: texts
    d: embedding width
    c: groups
    v: columns of a variable: 1 of a number, one a class of a category
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float64, Int64
from sklearn.metrics import adjusted_mutual_info_score
from torch import Tensor

from evaluation.centring import Embeddings, centred
from evaluation.codes import row_codes
from evaluation.labels import Labels, label_codes
from evaluation.reasons import null_for_nan

FAMILY = "family"
"""Name of the first row: the labels themselves."""


def nuisance_table(
    embeddings: Embeddings, labels: Labels, nuisances: Mapping[str, Sequence[int | float]], found: Labels
) -> list[dict[str, Any]]:
    """How much of the found clusters and of the first two principal axes each property of the texts explains.

    A model whose clusters share more with the magnitude of the numbers than with their family has not failed at
    random: on the paper's 24 texts all-MiniLM-L6-v2 gives AMI 0.28 with the magnitude and -0.15 with the family.

    Args:
        embeddings: (n, d), any floating dtype.
        labels: n labels, integers or strings.
        nuisances: name -> n finite numbers.
        found: n clusters, such as those of `kmeans_labels`.

    Returns:
        A dictionary a row, first "family" (the labels), then the nuisances in their order:

        - ``name``;
        - ``ami_clusters``, ``ami_family``: adjusted mutual information of the clusters, and of the labels, with the
          property; at most 1, about 0 by chance. A property with more distinct values than there are labels is cut into
          as many quantile bins first. A high ``ami_family`` is a leak: whoever reads the property knows the family.
        - ``share_clusters``: share of the property's variance that the clusters explain (for the family, Goodman and
          Kruskal's tau);
        - ``share_axis1``, ``share_axis2``: share of the variance of a principal axis that the property explains (the
          squared correlation; for the family, eta squared).

        The shares are adjusted as R squared is: (share - chance) / (1 - chance), where chance = (groups - 1) / (n - 1)
        is the mean share over all orders of the texts. So they are at most 1, 0 by chance, and six families compare
        with one number. What is undefined (a constant property, a single cluster, coinciding embeddings) is None, and
        ``<key>_reason`` beside it says why.

    Raises:
        ValueError: embeddings that are not a finite matrix; labels, clusters or a nuisance that do not match them, or
            a nuisance that is not finite or called "family".

    Reference:
        Vinh, Epps & Bailey, "Information theoretic measures for clusterings comparison", 2010 (AMI); Kelley, "An
        unbiased correlation ratio measure", 1935; Goodman & Kruskal, "Measures of association for cross
        classifications", 1954.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [9.0, 0.5], [10.0, 0.5]])
        >>> table = nuisance_table(x, ["a", "b", "a", "b"], {"length": [1.0, 1.0, 5.0, 5.0]}, [0, 0, 1, 1])
        >>> [row["name"] for row in table], round(table[1]["share_clusters"], 6), table[1]["ami_clusters"]
        (['family', 'length'], 1.0, 1.0)
    """
    points = centred(embeddings)
    n = points.shape[0]
    families, k = label_codes(labels, n)
    clusters, _ = row_codes(found, n, name="found")
    axes = _principal_axes(points)
    rows = [_row(FAMILY, families, _one_hot(families), families, clusters, axes)]
    for name, values in nuisances.items():
        numbers = _numbers(name, values, n)
        binned = _quantile_bins(numbers, max(2, k))
        rows.append(_row(name, binned, (numbers - numbers.mean())[:, None], families, clusters, axes))
    return rows


def _row(
    name: str,
    classes: Int64[Tensor, " n"],
    columns: Float64[Tensor, "n v"],
    families: Int64[Tensor, " n"],
    clusters: Int64[Tensor, " n"],
    axes: list[Float64[Tensor, " n"]],
) -> dict[str, Any]:
    """One property: as classes for the mutual information, as centred columns for the variances."""
    row: dict[str, Any] = {"name": name}
    if not bool(columns.any()):
        keys = ("ami_clusters", "ami_family", "share_clusters", "share_axis1", "share_axis2")
        return row | null_for_nan(dict.fromkeys(keys, math.nan), "the same in all texts")
    row |= null_for_nan({"ami_clusters": _ami(classes, clusters)}, "one cluster, or each text its own")
    row |= null_for_nan({"ami_family": _ami(classes, families)}, "one label, or each text its own")
    share = _adjusted_share(columns, _one_hot(clusters), _distinct(clusters) - 1)
    row |= null_for_nan({"share_clusters": share}, "one cluster, or each text its own")
    freedom = 1 if columns.shape[1] == 1 else columns.shape[1] - 1
    for at, key in enumerate(("share_axis1", "share_axis2")):
        value, reason = math.nan, f"the embeddings have no axis {at + 1}"
        if at < len(axes):
            value, reason = _adjusted_share(axes[at][:, None], columns, freedom), f"too few texts: {axes[at].shape[0]}"
        row |= null_for_nan({key: value}, reason)
    return row


def _numbers(name: str, values: Sequence[int | float], n: int) -> Float64[Tensor, " n"]:
    if name == FAMILY:
        raise ValueError(f"nuisances: expected names other than {FAMILY!r}, the row of the labels, got it; rename it")
    numbers = torch.tensor([float(value) for value in values], dtype=torch.float64)
    if numbers.shape[0] != n:
        raise ValueError(
            f"nuisances[{name!r}]: expected {n} numbers, one for each row of the embeddings, got {numbers.shape[0]}; "
            "align the two"
        )
    broken = int((~torch.isfinite(numbers)).sum())
    if broken:
        raise ValueError(
            f"nuisances[{name!r}]: expected finite numbers, got NaN or infinity for {broken} of {n} texts; "
            "fill them in or leave this nuisance out"
        )
    return numbers


def _quantile_bins(numbers: Float64[Tensor, " n"], bins: int) -> Int64[Tensor, " n"]:
    """Classes of a number: its distinct values if they are no more than ``bins``, otherwise quantile bins."""
    codes, distinct = row_codes(numbers, numbers.shape[0], name="numbers")
    if distinct <= bins:
        return codes
    inner = torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1]
    return torch.searchsorted(numbers.quantile(inner), numbers, right=True)


def _distinct(codes: Int64[Tensor, " n"]) -> int:
    return len(set(codes.tolist()))


def _one_hot(codes: Int64[Tensor, " n"]) -> Float64[Tensor, "n c"]:
    """Indicators of the classes, centred."""
    indicators = torch.nn.functional.one_hot(codes).double()
    return indicators - indicators.mean(dim=0)


def _principal_axes(points: Float64[Tensor, "n d"]) -> list[Float64[Tensor, " n"]]:
    """The texts along the first two principal axes, each of unit norm, on the CPU; fewer where no more are spanned."""
    left, values, _ = torch.linalg.svd(points, full_matrices=False)
    spanned = int((values > 1e-12 * values[0]).sum())
    return [left[:, at].cpu() for at in range(min(2, spanned))]


def _ami(left: Int64[Tensor, " n"], right: Int64[Tensor, " n"]) -> float:
    """nan where either partition is trivial: scikit-learn gives 1 to two of them."""
    n = left.shape[0]
    if not all(2 <= _distinct(codes) < n for codes in (left, right)):
        return math.nan
    return float(adjusted_mutual_info_score(left.numpy(), right.numpy()))


def _adjusted_share(explained: Float64[Tensor, "n v"], by: Float64[Tensor, "n c"], freedom: int) -> float:
    """Share of the variance of the (centred) columns that a linear fit on centred regressors of that rank explains."""
    n = explained.shape[0]
    if not 1 <= freedom < n - 1:
        return math.nan
    basis, values, _ = torch.linalg.svd(by, full_matrices=False)
    fitted = basis[:, values > 1e-9 * values[0]].T @ explained
    share = float(fitted.square().sum() / explained.square().sum())
    chance = freedom / (n - 1)
    return (share - chance) / (1 - chance)
