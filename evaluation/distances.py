"""Euclidean distances in float64, in tiles of bounded memory.

Dimension names:
    n: all points
    b: points of one tile
    d: width
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float64
from torch import Tensor

TILE_ELEMENTS = 1 << 21
"""Distances held at once: 16 MiB of float64, and a few temporaries of that size."""

_CANCELLED = 1e-7


def pairwise_distances(rows: Float64[Tensor, "b d"], points: Float64[Tensor, "n d"]) -> Float64[Tensor, "b n"]:
    """Distances of `rows` to `points`, both centred, with about nine correct digits even for near duplicates.

    One matrix product gives |x|^2 + |y|^2 - 2xy. Where that difference cancels, for pairs much closer to each other
    than to the centre, the few pairs concerned are computed again from their coordinates; equal rows are exactly 0
    apart.
    """
    norms = rows.square().sum(dim=1)[:, None] + points.square().sum(dim=1)[None, :]
    squared = torch.addmm(norms, rows, points.T, alpha=-2)
    left, right = torch.nonzero(squared <= _CANCELLED * norms, as_tuple=True)
    step = max(1, TILE_ELEMENTS // rows.shape[1])
    for start in range(0, left.numel(), step):
        i, j = left[start : start + step], right[start : start + step]
        squared[i, j] = (rows[i] - points[j]).square().sum(dim=1)
    return squared.sqrt_()


def distance_tiles(points: Float64[Tensor, "n d"]) -> Iterator[tuple[slice, Float64[Tensor, "b n"]]]:
    """The rows of the n x n distance matrix, a tile at a time: (which rows, their distances to all points)."""
    n = points.shape[0]
    height = max(1, TILE_ELEMENTS // n)
    for start in range(0, n, height):
        rows = slice(start, min(start + height, n))
        yield rows, pairwise_distances(points[rows], points)
