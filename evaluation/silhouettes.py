"""The silhouette of many labellings of the same points: the core of the score and of its permutation null.

Distances are computed once, a tile of rows at a time; every labelling then costs one matrix product with its one-hot
matrix, which sums the distances of each point to each cluster.

Dimension names:
    n: points
    d: width
    b: points of one tile
    p: labellings
    k: clusters
"""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from evaluation.centring import coincide
from evaluation.distances import TILE_ELEMENTS, distance_tiles


def silhouette_undefined(points: Float64[Tensor, "n d"], k: int) -> str | None:
    """Why centred points have no silhouette over k labels; None when they have one."""
    n = points.shape[0]
    if not 2 <= k <= n - 1:
        needed = f"2 to {n - 1} distinct labels" if n >= 3 else "at least 3 texts with 2 distinct labels"
        return f"needs {needed} for {n} texts, got {k}" if n >= 3 else f"needs {needed}, got {n} texts"
    if coincide(points):
        return "all embeddings coincide"
    return None


def mean_silhouettes(points: Float64[Tensor, "n d"], labellings: Int64[Tensor, "p n"], k: int) -> Float64[Tensor, " p"]:
    """The mean silhouette of each labelling (codes 0..k-1, the same cluster sizes in all), where 2 <= k <= n - 1.

    Memory beyond the input: a few tiles of `TILE_ELEMENTS`, and n x k for the one-hot matrix of one labelling.
    """
    p, n = labellings.shape
    assert 2 <= k < n, "callers ask `silhouette_undefined` first"
    labellings = labellings.to(points.device)
    counts = torch.bincount(labellings[0], minlength=k).double()
    totals = points.new_zeros(p)
    for rows, distances in distance_tiles(points):
        step = max(1, TILE_ELEMENTS // (n * k))
        for start in range(0, p, step):
            chunk = labellings[start : start + step]
            sums = _cluster_sums(distances, chunk, k)
            totals[start : start + step] += _silhouettes(sums, chunk[:, rows], counts).sum(dim=1)
    return totals / n


def _cluster_sums(
    distances: Float64[Tensor, "b n"], labellings: Int64[Tensor, "p n"], k: int
) -> Float64[Tensor, "p b k"]:
    """Sum of the distances of each point of the tile to the members of each cluster."""
    p, n = labellings.shape
    one_hot = distances.new_zeros(n, p, k)
    one_hot.scatter_(2, labellings.T[:, :, None], 1.0)
    return (distances @ one_hot.view(n, p * k)).view(-1, p, k).transpose(0, 1)


def _silhouettes(
    sums: Float64[Tensor, "p b k"], own: Int64[Tensor, "p b"], counts: Float64[Tensor, " k"]
) -> Float64[Tensor, "p b"]:
    """(b - a) / max(a, b) of each point; 0 where it is alone in its cluster or where a = b = 0."""
    index = own[:, :, None]
    size = counts[own]
    within = sums.gather(2, index)[:, :, 0] / (size - 1).clamp(min=1)
    between = (sums / counts).scatter(2, index, torch.inf).amin(dim=2)
    larger = torch.maximum(within, between)
    scores = (between - within) / torch.where(larger > 0, larger, 1.0)
    return torch.where(size > 1, scores, 0.0)
