"""SCE: select the elements that differ most between inputs, calculate shares, erase minority signs.

Dimensions: n inputs, r rows of a chunk, c columns of the tensor.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from merging.consensus import agreeing
from merging.options import Options
from merging.selection import find_bands, survey
from merging.walk import Combine, Trim, Walk


def sce(walk: Walk, weights: Float64[Tensor, " n"], options: Options, name: str) -> Combine:
    """Average the task vectors by their energy over the elements that differ most, without minority signs.

    1. Select: of the elements whose variance over the inputs is not zero, the share ``select_topk`` with the
       largest; the others become zero.
    2. Calculate: an input's share is its sum of squares over that of all inputs.
    3. Erase: where an input's sign is not that of the sum, its share is zero; the rest are scaled to sum 1.

    The inputs weigh themselves, so ``weights`` has no say.  Reference: Wan et al. 2024, FuseChat,
    arXiv:2408.07990.
    """
    trim = keep_most_varying(walk, options.select_topk)
    squares = sums_of_squares(walk, trim)
    shares = squares / squares.sum() if bool(squares.any()) else torch.full_like(squares, 1 / len(squares))
    return average_agreeing(trim, shares)


def keep_most_varying(walk: Walk, share: float) -> Trim:
    """Keep, in every input, the ``share`` of the elements with variance over the inputs whose variance is largest.

    A share of 1 keeps every element.  Of equal variances the earlier elements are kept.
    """
    if share == 1:
        return lambda index, chunk: chunk

    def variances() -> Iterator[Float32[Tensor, "1 r c"]]:
        return (variance(chunk)[None] for chunk in walk())

    seen = survey(variances)
    [band] = find_bands(variances, seen, [(0, int(share * seen.nonzero[0]))])
    return lambda index, chunk: chunk * band.holds(index, variance(chunk))


def sums_of_squares(walk: Walk, trim: Trim) -> Float64[Tensor, " n"]:
    """Return the sum of squares of what ``trim`` leaves of each input."""
    total = torch.zeros((), dtype=torch.float64)
    for index, chunk in enumerate(walk()):
        total = total + trim(index, chunk).double().square().sum((1, 2))
    return total.cpu()


def average_agreeing(
    trim: Trim, shares: Float64[Tensor, " n"], *, precision: torch.dtype = torch.float64, smallest: float = 0.0
) -> Combine:
    """Average, with these shares, the inputs whose element has the sign of the sum; ``smallest`` bounds the divisor."""
    floor = max(smallest, torch.finfo(torch.float32).tiny)

    def combine(index: int, chunk: Float32[Tensor, "n r c"]) -> Float32[Tensor, "r c"]:
        parts = trim(index, chunk)
        factors = shares.to(chunk.device, torch.float32)[:, None, None] * agreeing(parts, precision)
        return (parts * factors).sum(0) / factors.sum(0).clamp(min=floor)

    return combine


def variance(chunk: Float32[Tensor, "n r c"]) -> Float32[Tensor, "r c"]:
    """Return the variance over the inputs, exactly zero where they are equal, rounded from float64.

    >>> variance(torch.tensor([[[0.1, 1.0]], [[0.1, 3.0]], [[0.1, 5.0]]]))
    tensor([[0.0000, 2.6667]])
    """
    # Row by row: torch.var, and sums over a small first dimension in float64, take 6 to 25 times as long.
    mean = chunk[0].double()
    for vector in chunk[1:]:
        mean += vector
    mean /= len(chunk)
    squares = torch.zeros_like(mean)
    for vector in chunk:
        gap = vector - mean
        squares.addcmul_(gap, gap)
    return (squares / len(chunk)).float()
