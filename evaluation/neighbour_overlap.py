"""kNN overlap: does a text keep its nearest neighbours from one embedding to the other?

Dimension names:
    n: texts
    d: width of the embeddings
    e: width of the base embeddings
    b: texts of one tile
    k: neighbours
"""

import math

import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from evaluation.centring import Embeddings
from evaluation.distances import distance_tiles
from evaluation.paired import Measured, pair_undefined, paired

NEIGHBOURS = 10
"""Neighbours compared unless another number is asked for."""


def knn_overlap(embeddings: Embeddings, base_embeddings: Embeddings, *, k: int = NEIGHBOURS) -> float:
    """The share of a text's k nearest neighbours that it keeps, averaged over the texts; itself excluded.

    Of texts equally near (their distances agree to float32) the first in the list counts as nearer.

    Args:
        embeddings: (n, d), any floating dtype.
        base_embeddings: (n, e), the same texts in the same order.
        k: neighbours compared, at least 1.

    Returns:
        0..1, best 1; unrelated embeddings keep k / (n - 1). nan for fewer than k + 2 texts (with k + 1 everybody is a
        neighbour) and for embeddings that coincide.

    Raises:
        ValueError: matrices that are not finite or differ in their number of rows, k < 1.

    Example:
        >>> x = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
        >>> knn_overlap(x, 3 * x + 1)
        1.0
    """
    return measured_overlap(*paired(embeddings, base_embeddings), k)[0]


def measured_overlap(x: Float64[Tensor, "n d"], y: Float64[Tensor, "n e"], k: int) -> Measured:
    """`knn_overlap` of matrices already `paired`, and why it is undefined if it is nan."""
    if k < 1:
        raise ValueError(f"k: expected at least 1 neighbour, got {k}; {NEIGHBOURS} is a good number")
    reason = pair_undefined(x, y, k + 2)
    if reason is not None:
        return math.nan, reason
    # A text and its neighbour are one number, so that what both sides hold is one intersection.
    first = torch.arange(x.shape[0], device=x.device)[:, None] * x.shape[0]
    kept = torch.isin(first + _neighbours(x, k), first + _neighbours(y, k), assume_unique=True)
    return float(kept.sum()) / (k * x.shape[0]), None


def _neighbours(points: Float64[Tensor, "n d"], k: int) -> Int64[Tensor, "n k"]:
    """The k points nearest to each, itself excluded, in the order of the list."""
    found = torch.empty(points.shape[0], k, dtype=torch.int64, device=points.device)
    for rows, tile in distance_tiles(points):
        distances = tile.float()
        distances[:, rows].fill_diagonal_(torch.inf)
        found[rows] = _nearest(distances, k).nonzero()[:, 1].view(-1, k)
    return found


def _nearest(distances: Float32[Tensor, "b n"], k: int) -> Bool[Tensor, "b n"]:
    """Marks the k smallest of each row; of equal ones the first (`topk` takes any)."""
    furthest = distances.topk(k, dim=1, largest=False).values[:, -1:]
    nearer, level = distances < furthest, distances == furthest
    places = k - nearer.sum(dim=1, keepdim=True)
    crowded = (level.sum(dim=1, keepdim=True) > places).squeeze(1)
    level[crowded] &= level[crowded].cumsum(dim=1) <= places[crowded]
    return nearer | level
