"""The shape of one cloud of embeddings: how it fills the space, without a base to compare it with.

Cosine numbers (anisotropy, uniformity, alignment) look at directions from the origin, so unlike the rest of this
package they change when the cloud is translated; the effective rank looks at the cloud around its mean.

Dimension names:
    n: texts
    d: embedding width
    k: labels
    r: the smaller of n and d
"""

import math
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from evaluation.centring import Embeddings, centred, checked, coincide, rounding
from evaluation.distances import TILE_ELEMENTS, distance_tiles
from evaluation.labels import Labels, label_codes
from evaluation.paired import Measured
from evaluation.reasons import null_for_nan

_ONE_DIRECTION = 1e-14
"""Unit rows no further than this from their mean differ by the rounding of float64."""


def anisotropy(embeddings: Embeddings) -> float:
    """The mean cosine of two different texts, over all pairs.

    Args:
        embeddings: (n, d), any floating dtype; not centred, as the offset is what is measured.

    Returns:
        -1 / (n - 1)..1. 0 for directions spread evenly, c^2 / (c^2 + 1) for unit spread around an offset c, 1 after a
        collapse; LLM embedders reach 0.9. No value is best: a cone is a waste of space, not an error. Invariant to
        rotation and rescaling. nan for fewer than 2 texts and where an embedding is zero (it has no direction).

    Raises:
        ValueError: embeddings that are not a finite matrix.

    Reference:
        Ethayarajh, "How contextual are contextualized word representations?", 2019.

    Example:
        >>> round(anisotropy(torch.tensor([[3.0, 0.0], [0.0, 2.0]])), 6)
        0.0
    """
    return _anisotropy(_directions(embeddings))[0]


def effective_rank(embeddings: Embeddings) -> float:
    """How many dimensions the cloud around its mean fills: exp of the entropy of its normalised singular values.

    Args:
        embeddings: (n, d), any floating dtype.

    Returns:
        1..min(n - 1, d): r where r singular values are equal and the others 0. Higher is a fuller use of the space.
        Invariant to rotation, rescaling and translation. nan for embeddings that coincide (a single text always does).

    Raises:
        ValueError: embeddings that are not a finite matrix.

    Reference:
        Roy & Vetterli, "The effective rank: a measure of effective dimensionality", 2007. Singular values as there,
        not their squares.

    Example:
        >>> round(effective_rank(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])), 6)
        2.0
    """
    return _effective_rank(centred(embeddings))[0]


def uniformity(embeddings: Embeddings) -> float:
    """How evenly the directions cover the sphere: log of the mean of exp(-2 |u - v|^2) over pairs of unit rows.

    Args:
        embeddings: (n, d), any floating dtype.

    Returns:
        -8..0, best lowest; about -4 for directions spread evenly over a wide sphere, 0 after a collapse. Invariant to
        rotation and rescaling. nan for fewer than 2 texts and where an embedding is zero.

    Raises:
        ValueError: embeddings that are not a finite matrix.

    Reference:
        Wang & Isola, "Understanding contrastive representation learning through alignment and uniformity on the
        hypersphere", 2020 (t = 2).

    Example:
        >>> round(uniformity(torch.tensor([[3.0, 0.0], [0.0, 2.0]])), 6)
        -4.0
    """
    return _uniformity(_directions(embeddings))[0]


def alignment(embeddings: Embeddings, labels: Labels) -> float:
    """How close texts of the same label are: the mean of |u - v|^2 over pairs of unit rows with the same label.

    Every pair counts alike, so a label of many texts counts more. To be read beside `uniformity`: shrinking all
    directions towards each other improves this number and spoils that one.

    Args:
        embeddings: (n, d), any floating dtype.
        labels: n labels, integers or strings.

    Returns:
        0..4, best 0. Invariant to rotation and rescaling. nan where no label has two texts, where an embedding is zero
        and where all directions coincide: a collapse is not a perfect alignment.

    Raises:
        ValueError: embeddings that are not a finite matrix, or labels that do not match them.

    Reference:
        Wang & Isola, 2020 (alpha = 2).

    Example:
        >>> round(alignment(torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 0.0]]), ["a", "a", "b"]), 6)
        2.0
    """
    return _alignment(_directions(embeddings), *label_codes(labels, checked(embeddings).shape[0]))[0]


def geometry_report(embeddings: Embeddings, labels: Labels | None = None) -> dict[str, Any]:
    """All four, ready for a row of the report.

    Args:
        embeddings: (n, d), any floating dtype.
        labels: n labels, for the alignment.

    Returns:
        ``anisotropy, effective_rank, uniformity, alignment``. What is undefined is None, and ``<key>_reason`` beside it
        says why.

    Raises:
        ValueError: embeddings that are not a finite matrix, or labels that do not match them.

    Example:
        >>> report = geometry_report(torch.eye(3))
        >>> round(report["effective_rank"], 6), report["alignment"], report["alignment_reason"]
        (2.0, None, 'needs labels')
    """
    points = centred(embeddings)
    directions = _directions(embeddings)
    report: dict[str, Any] = {}
    for key, (value, reason) in {
        "anisotropy": _anisotropy(directions),
        "effective_rank": _effective_rank(points),
        "uniformity": _uniformity(directions),
        "alignment": (math.nan, "needs labels")
        if labels is None
        else _alignment(directions, *label_codes(labels, points.shape[0])),
    }.items():
        report |= null_for_nan({key: value}, reason)
    return report


def _directions(embeddings: Embeddings) -> Float64[Tensor, "n d"] | str:
    """Unit rows, exactly equal where they agree to the rounding of the embeddings' dtype; or why there are none."""
    rows = checked(embeddings)
    if rows.shape[0] < 2:
        return "needs at least 2 texts, got 1"
    exact = rows.double()
    # By the largest entry first: the square of 1e-200 is 0.
    sizes = torch.linalg.vector_norm(exact, ord=torch.inf, dim=1, keepdim=True)
    empty = int((sizes == 0).sum())
    if empty:
        return f"{empty} of {rows.shape[0]} embeddings are zero and have no direction"
    exact = exact / sizes
    directions = exact / torch.linalg.vector_norm(exact, dim=1, keepdim=True)
    one = _apart(directions) <= max(_ONE_DIRECTION, rounding(rows.dtype))
    return directions[:1].expand_as(directions) if one else directions


def _apart(directions: Float64[Tensor, "n d"]) -> float:
    """Distance of the furthest direction from their mean."""
    return float(torch.linalg.vector_norm(directions - directions.mean(dim=0), dim=1).max())


def _anisotropy(directions: Float64[Tensor, "n d"] | str) -> Measured:
    if isinstance(directions, str):
        return math.nan, directions
    n = directions.shape[0]
    # |sum u|^2 is the sum over all pairs, each text with itself included.
    return min(1.0, (float(directions.sum(dim=0).square().sum()) - n) / (n * (n - 1))), None


def _effective_rank(points: Float64[Tensor, "n d"]) -> Measured:
    if points.shape[0] < 2:
        return math.nan, "needs at least 2 texts, got 1"
    if coincide(points):
        return math.nan, "all embeddings coincide"
    values = torch.linalg.svdvals(_triangle(points / torch.linalg.vector_norm(points, ord=torch.inf)))
    return float(torch.special.entr(values / values.sum()).sum().exp()), None


def _triangle(points: Float64[Tensor, "n d"]) -> Float64[Tensor, "r d"]:
    """A matrix of the same singular values with at most d rows, from blocks of rows."""
    n, d = points.shape
    if n <= d:
        return points
    height = max(d, TILE_ELEMENTS // d)
    factor = points[:0]
    for start in range(0, n, height):
        factor = torch.linalg.qr(torch.cat([factor, points[start : start + height]]), mode="r").R
    return factor


def _uniformity(directions: Float64[Tensor, "n d"] | str) -> Measured:
    if isinstance(directions, str):
        return math.nan, directions
    n = directions.shape[0]
    total = directions.new_zeros(())
    # Around their mean, directions of a narrow cone keep all digits of their distances.
    for rows, tile in distance_tiles(directions - directions.mean(dim=0)):
        potential = tile.square().mul_(-2).exp_()
        potential[:, rows].fill_diagonal_(0.0)
        total += potential.sum()
    return math.log(float(total) / (n * (n - 1))), None


def _alignment(directions: Float64[Tensor, "n d"] | str, codes: Int64[Tensor, " n"], k: int) -> Measured:
    if isinstance(directions, str):
        return math.nan, directions
    codes = codes.to(directions.device)
    counts = torch.bincount(codes, minlength=k).double()
    pairs = float((counts * (counts - 1)).sum()) / 2
    if pairs == 0:
        return math.nan, "no label has two texts"
    if _apart(directions) <= _ONE_DIRECTION:
        return math.nan, "all directions coincide"
    points = directions - directions.mean(dim=0)
    means = points.new_zeros(k, points.shape[1]).index_add_(0, codes, points) / counts[:, None]
    # Over the pairs of a label, |u - v|^2 sums to its count times its scatter around its mean.
    scatter = (points - means[codes]).square().sum(dim=1)
    return float((scatter * counts[codes]).sum()) / pairs, None
