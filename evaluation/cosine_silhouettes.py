"""Cosine silhouettes, exact in O(n k d) and streamed: half a million rows need seconds and little memory.

Half the squared distance of two unit rows is 1 - cos. Squared distances to a whole cluster need no pairs: their mean is
the squared distance to the cluster's centroid plus the mean squared distance of its members to that centroid. So two
passes over the rows are enough, one for the centroids and one for the distances to them.

Dimension names:
    n: texts
    b: texts of one chunk
    d: embedding width
    k: clusters
"""

import math
from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from evaluation.centring import chunks, rounding
from evaluation.distances import squared_distances
from evaluation.silhouettes import SUMS_ELEMENTS, labels_undefined, silhouettes_of_sums

Tile = tuple[slice, Float64[Tensor, "_ k"]]

# Unit rows in float64 are this close where they are one direction: a few roundings.
_ONE_DIRECTION = (8 * torch.finfo(torch.float64).eps) ** 2


def cosine_silhouettes(
    rows: Float[Tensor, "n d"], codes: Int64[Tensor, " n"], k: int
) -> tuple[Float64[Tensor, " n"], str | None]:
    """The silhouette of each row by 1 - cos, and why they are nan if they are.

    Undefined are numbers of labels outside 2..n - 1, a row of zeros, which has no direction (scikit-learn puts it at
    distance 1 from everything), and rows that all point the same way to the rounding of their dtype.

    Memory beyond the input: chunks, and a few tiles of `SUMS_ELEMENTS`, without a float64 copy of the rows.
    """
    n = rows.shape[0]
    scores = torch.full((n,), math.nan, dtype=torch.float64, device=rows.device)
    undefined = labels_undefined(n, k)
    if undefined is not None:
        return scores, undefined
    codes = codes.to(rows.device)
    counts = torch.bincount(codes, minlength=k).double()
    sums, zeros = direction_sums(rows, codes, k)
    if zeros:
        return scores, f"{zeros} of {n} embeddings are zero and have no direction"
    centre = sums.sum(dim=0) / n
    centroids = sums / counts[:, None] - centre
    tiles = _kept(rows, centre, centroids) if n * k <= SUMS_ELEMENTS else None
    scatter, furthest = _scatter(tiles or _tiles(rows, centre, centroids), codes, k)
    if max(furthest, float(centroids.square().sum(dim=1).max())) <= rounding(rows.dtype) ** 2:
        return scores, "all embeddings point in one direction"
    for which, squared in tiles or _tiles(rows, centre, centroids):
        sums = squared.mul_(counts).add_(scatter).div_(2)
        scores[which] = silhouettes_of_sums(sums[None], codes[None, which], counts)[0]
    return scores, None


def direction_sums(
    rows: Float[Tensor, "n d"], codes: Int64[Tensor, " n"], k: int
) -> tuple[Float64[Tensor, "k d"], int]:
    """The sum of the unit rows of each label, and how many rows are zero (they count as zeros in the sum)."""
    sums = torch.zeros(k, rows.shape[1], dtype=torch.float64, device=rows.device)
    zeros = 0
    for which, directions, without in unit_chunks(rows):
        sums.index_add_(0, codes[which], directions)
        zeros += without
    return sums, zeros


def unit_chunks(rows: Float[Tensor, "n d"]) -> Iterator[tuple[slice, Float64[Tensor, "b d"], int]]:
    """The rows in float64 over their lengths: (which, they, how many are zero and stay so). The next takes their place."""
    room = torch.empty(0, dtype=torch.float64, device=rows.device)
    for which, chunk in chunks(rows):
        room = room if room.numel() else torch.empty_like(chunk, dtype=torch.float64)
        exact = room[: chunk.shape[0]].copy_(chunk)
        if rows.dtype == torch.float64:  # whose squares may overflow or vanish, unlike those of narrower numbers
            largest = torch.linalg.vector_norm(exact, ord=math.inf, dim=1, keepdim=True)
            exact.div_(largest.masked_fill_(largest == 0, 1.0))
        lengths = torch.linalg.vector_norm(exact, dim=1, keepdim=True)
        zero = lengths == 0
        exact.mul_(lengths.masked_fill_(zero, 1.0).reciprocal_())
        yield which, exact, int(zero.sum())


def _tiles(
    rows: Float[Tensor, "n d"], centre: Float64[Tensor, " d"], centroids: Float64[Tensor, "k d"]
) -> Iterator[Tile]:
    """Squared distances of the unit rows to the centroids, both taken around the centre, so that nothing cancels."""
    for which, directions, _ in unit_chunks(rows):
        squared = squared_distances(directions.sub_(centre), centroids)
        yield which, squared.masked_fill_(squared <= _ONE_DIRECTION, 0.0)


def _kept(rows: Float[Tensor, "n d"], centre: Float64[Tensor, " d"], centroids: Float64[Tensor, "k d"]) -> list[Tile]:
    """The same, all of them at once in one piece of memory."""
    kept = centroids.new_empty(rows.shape[0], centroids.shape[0])
    for which, squared in _tiles(rows, centre, centroids):
        kept[which] = squared
    return [(which, kept[which]) for which, _ in chunks(rows)]


def _scatter(tiles: Iterable[Tile], codes: Int64[Tensor, " n"], k: int) -> tuple[Float64[Tensor, " k"], float]:
    """The summed squared distances of each cluster's members to its centroid, and the largest of them all."""
    scatter = torch.zeros(k, dtype=torch.float64, device=codes.device)
    furthest = 0.0
    for which, squared in tiles:
        own = squared.gather(1, codes[which, None])[:, 0]
        scatter.index_add_(0, codes[which], own)
        furthest = max(furthest, float(own.max()))
    return scatter, furthest
