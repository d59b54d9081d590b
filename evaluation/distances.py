"""Euclidean distances with float64's digits, in tiles of bounded memory.

A matrix product gives |x|^2 + |y|^2 - 2xy. Where that difference cancels, for pairs much closer to each other than to
the origin, the few pairs concerned are computed again from their coordinates; equal rows are exactly 0 apart.

Dimension names:
    n: all points
    b: points of one tile, down
    m: points of one tile, across
    d: width
"""

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from evaluation.centring import CHUNK_ELEMENTS

TILE_ELEMENTS = 1 << 21
"""Distances held at once: 16 MiB of float64, and a few temporaries of that size."""

LARGE = 4096
"""From so many points on, products may be taken in float32 where that is as good (see `half_tiles`)."""

# Squared distances below this share of the squared norms have lost too many digits of float64, or of float32.
_CANCELLED = 1e-7
_CANCELLED_SHORT = 1 / 16
# Products of float32 are right to 1e-8 of the norms; bfloat16 and TF32, which torch may be set to use, to 1e-4.
_SHORT_ERROR = 1e-6
# Squared norms whose products neither overflow nor vanish in float32.
_SHORT_RANGE = (1e-24, 1e24)


def squared_distances(rows: Float64[Tensor, "b d"], points: Float64[Tensor, "m d"]) -> Float64[Tensor, "b m"]:
    """Squared distances of `rows` to `points`, both centred, with about nine correct digits even for near duplicates."""
    down, across = _squared_norms(rows), _squared_norms(points)
    squared = (down[:, None] + across).addmm_(rows, points.T, alpha=-2)
    return _repaired(squared, rows, points, *_cancelled(squared, down, across, _CANCELLED))


def pairwise_distances(rows: Float64[Tensor, "b d"], points: Float64[Tensor, "m d"]) -> Float64[Tensor, "b m"]:
    """Distances of `rows` to `points`, both centred, with about nine correct digits even for near duplicates."""
    return squared_distances(rows, points).sqrt_()


def distance_tiles(points: Float64[Tensor, "n d"]) -> Iterator[tuple[slice, Float64[Tensor, "b n"]]]:
    """The rows of the n x n distance matrix, a tile at a time: (which rows, their distances to all points)."""
    n = points.shape[0]
    height = max(1, TILE_ELEMENTS // n)
    for start in range(0, n, height):
        rows = slice(start, min(start + height, n))
        yield rows, pairwise_distances(points[rows], points)


def half_tiles(
    points: Float64[Tensor, "n d"], order: Int64[Tensor, " n"], ends: Sequence[int]
) -> Iterator[tuple[slice, slice, Float[Tensor, "b m"]]]:
    """The distance matrix of ``points[order]`` on and above its diagonal, in square tiles: (rows, columns, distances).

    `ends` says where clusters end in that order: tiles keep to them, and each is taken around the mean of its rows, so
    that little cancels in tight clusters far apart. Of `LARGE` and more points tiles are taken in float32, which is more
    than twice as fast, if that costs no more than its rounding: pairs for which it does are computed again, or the whole
    tile, in float64, where they are many. Distances are then right to about 1e-7, without bias, and their means to far
    less. The next tile may take the place of one.
    """
    n, d = points.shape
    side = min(n, max(1, math.isqrt(TILE_ELEMENTS // 2)))
    blocks = _blocks(ends, side)
    taken = points.new_empty(side, d)
    room = points.new_empty(side * side if n >= LARGE else 0, dtype=torch.float32)
    for place, down in enumerate(blocks):
        rows = points[order[down]]
        centre = rows.mean(dim=0)
        rows -= centre
        for across in blocks[place:]:
            others = torch.index_select(points, 0, order[across], out=taken[: across.stop - across.start]).sub_(centre)
            squared = _short_squares(rows, others, room) if n >= LARGE else None
            yield down, across, (squared_distances(rows, others) if squared is None else squared).sqrt_()


def _blocks(ends: Sequence[int], side: int) -> list[slice]:
    """All points in order, at most `side` a block: several whole clusters, or a part of one."""
    blocks, start = [], 0
    for end, following in zip(ends, [*ends[1:], math.inf], strict=True):
        if following - start <= side:
            continue
        height = math.ceil((end - start) / max(1, math.ceil((end - start) / side)))
        blocks += [slice(at, min(at + height, end)) for at in range(start, end, max(1, height))]
        start = end
    return blocks


def _short_squares(
    rows: Float64[Tensor, "b d"], others: Float64[Tensor, "m d"], room: Float32[Tensor, " tile"]
) -> Float32[Tensor, "b m"] | None:
    """Squared distances in float32, in `room`; None where float64 is needed."""
    norms = _squared_norms(rows), _squared_norms(others)
    low, high = torch.cat(norms).aminmax()
    if not (_SHORT_RANGE[0] < float(low) and float(high) < _SHORT_RANGE[1]):
        return None
    shape = rows.shape[0], others.shape[0]
    size = math.prod(shape)
    products = torch.mm(rows.float(), others.float().T, out=room[:size].view(shape))
    sample = slice(0, 16)
    error = (products[0, sample] - others[sample] @ rows[0]).abs()
    if bool((error > _SHORT_ERROR * (norms[0][0] * norms[1][sample]).sqrt()).any()):
        return None
    down, across = (each.float() for each in norms)
    squared = products.mul_(-2).add_(down[:, None]).add_(across)
    pairs = _cancelled(squared, down, across, _CANCELLED_SHORT)
    # A pair from its coordinates costs as much as some 60 by a product.
    return _repaired(squared, rows, others, *pairs) if pairs[0].numel() <= size // 64 else None


def _squared_norms(rows: Float64[Tensor, "b d"]) -> Float64[Tensor, " b"]:
    """Without the temporary of squares that ``rows.square().sum(dim=1)`` makes."""
    return torch.linalg.vector_norm(rows, dim=1).square_()


def _cancelled(
    squared: Float[Tensor, "b m"], down: Float[Tensor, " b"], across: Float[Tensor, " m"], share: float
) -> tuple[Int64[Tensor, " pairs"], Int64[Tensor, " pairs"]]:
    """The pairs (row, column) whose squared distance is at most that share of their squared norms."""
    # One look at each row's smallest finds nearly all tiles in order, at a tenth of the price of the full comparison.
    (suspects,) = torch.nonzero(squared.amin(dim=1) <= share * (down + across.max()), as_tuple=True)
    pairs = [(suspects[:0], suspects[:0])]
    for rows in torch.split(suspects, max(1, CHUNK_ELEMENTS // across.shape[0])):
        near = squared[rows] <= (down[rows, None] + across).mul_(share)
        found, columns = torch.nonzero(near, as_tuple=True)
        pairs.append((rows[found], columns))
    left, right = zip(*pairs, strict=True)
    return torch.cat(left), torch.cat(right)


def _repaired(
    squared: Float[Tensor, "b m"],
    rows: Float64[Tensor, "b d"],
    points: Float64[Tensor, "m d"],
    left: Int64[Tensor, " pairs"],
    right: Int64[Tensor, " pairs"],
) -> Float[Tensor, "b m"]:
    """The same tensor, these pairs of it computed from their coordinates."""
    step = max(1, CHUNK_ELEMENTS // rows.shape[1])
    for start in range(0, left.numel(), step):
        i, j = left[start : start + step], right[start : start + step]
        squared[i, j] = torch.linalg.vector_norm(rows[i] - points[j], dim=1).square_().to(squared.dtype)
    return squared
