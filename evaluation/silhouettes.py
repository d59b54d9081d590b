"""Euclidean silhouettes: of each point under one labelling, and the mean under many, as the permutation null needs it.

Both come from the sums of the distances of each point to each cluster. For one labelling half of the distance matrix
is enough, since a tile serves its rows and its columns. For many, distances are computed once, a tile of rows at a
time, and every labelling costs one matrix product with its one-hot matrix.

Dimension names:
    n: points
    d: width
    b: points of one tile
    p: labellings
    k: clusters
"""

from bisect import bisect_right

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from evaluation.centring import coincide
from evaluation.distances import TILE_ELEMENTS, distance_tiles, half_tiles

SUMS_ELEMENTS = 1 << 22
"""Sums of distances (n x k) held at once: 32 MiB of float64. Beyond, the whole distance matrix is gone through."""


def labels_undefined(n: int, k: int) -> str | None:
    """Why n texts have no silhouette over k labels, whatever their embeddings; None when they have one."""
    if 2 <= k <= n - 1:
        return None
    if n < 3:
        return f"needs at least 3 texts with 2 distinct labels, got {n} texts"
    return f"needs 2 to {n - 1} distinct labels for {n} texts, got {k}"


def silhouette_undefined(points: Float64[Tensor, "n d"], k: int) -> str | None:
    """Why centred points have no silhouette over k labels; None when they have one."""
    undefined = labels_undefined(points.shape[0], k)
    if undefined is not None:
        return undefined
    return "all embeddings coincide" if coincide(points) else None


def sample_silhouettes(points: Float64[Tensor, "n d"], codes: Int64[Tensor, " n"], k: int) -> Float64[Tensor, " n"]:
    """The silhouette of each point (codes 0..k-1), where 2 <= k <= n - 1.

    Memory beyond the input: a few tiles of `TILE_ELEMENTS` and of `SUMS_ELEMENTS`.
    """
    n = points.shape[0]
    assert 2 <= k < n, "callers ask `silhouette_undefined` first"
    codes = codes.to(points.device)
    counts = torch.bincount(codes, minlength=k).double()
    scores = points.new_empty(n)
    if n * k > SUMS_ELEMENTS:
        for rows, distances in distance_tiles(points):
            sums = _cluster_sums(distances, codes[None, :], k)
            scores[rows] = silhouettes_of_sums(sums, codes[None, rows], counts)[0]
        return scores
    order = codes.argsort(stable=True)
    sums = _half_sums(points, order, counts)
    scores[order] = silhouettes_of_sums(sums[None], codes[None, order], counts)[0]
    return scores


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
            totals[start : start + step] += silhouettes_of_sums(sums, chunk[:, rows], counts).sum(dim=1)
    return totals / n


def _half_sums(
    points: Float64[Tensor, "n d"], order: Int64[Tensor, " n"], counts: Float64[Tensor, " k"]
) -> Float64[Tensor, "n k"]:
    """Sums of the distances of each point of ``points[order]`` to the members of each cluster, which lie together."""
    sums = points.new_zeros(points.shape[0], counts.shape[0])
    ends = counts.cumsum(0).long().tolist()
    for down, across, distances in half_tiles(points, order, ends):
        for code, part in _runs(ends, across):
            sums[down, code] += distances[:, part].sum(dim=1)
        if down != across:
            for code, part in _runs(ends, down):
                sums[across, code] += distances[part].sum(dim=0)
    return sums


def _runs(ends: list[int], block: slice) -> list[tuple[int, slice]]:
    """The clusters that a block of the ordered points meets, each with its place in the block."""
    runs, start, code = [], block.start, bisect_right(ends, block.start)
    while start < block.stop:
        end = min(ends[code], block.stop)
        runs.append((code, slice(start - block.start, end - block.start)))
        start, code = end, code + 1
    return runs


def _cluster_sums(
    distances: Float64[Tensor, "b n"], labellings: Int64[Tensor, "p n"], k: int
) -> Float64[Tensor, "p b k"]:
    """Sum of the distances of each point of the tile to the members of each cluster."""
    p, n = labellings.shape
    if n * k > SUMS_ELEMENTS:  # so many clusters are cheaper one column at a time than as a one-hot matrix
        return torch.stack([distances.new_zeros(len(distances), k).index_add_(1, row, distances) for row in labellings])
    one_hot = distances.new_zeros(n, p, k)
    one_hot.scatter_(2, labellings.T[:, :, None], 1.0)
    return (distances @ one_hot.view(n, p * k)).view(-1, p, k).transpose(0, 1)


def silhouettes_of_sums(
    sums: Float64[Tensor, "p b k"], own: Int64[Tensor, "p b"], counts: Float64[Tensor, " k"]
) -> Float64[Tensor, "p b"]:
    """(b - a) / max(a, b) of each point, from its summed distances to each cluster.

    0 where it is alone in its cluster or where a = b = 0.
    """
    index = own[:, :, None]
    size = counts[own]
    within = sums.gather(2, index)[:, :, 0] / (size - 1).clamp(min=1)
    between = (sums / counts).scatter(2, index, torch.inf).amin(dim=2)
    larger = torch.maximum(within, between)
    scores = (between - within) / torch.where(larger > 0, larger, 1.0)
    return torch.where(size > 1, scores, 0.0)
