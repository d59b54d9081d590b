"""How trimmed task vectors become one: their weighted sum, or a vote on the sign of each element first.

Dimensions: n inputs, r rows of a chunk, c columns of the tensor.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float32, Float64
from torch import Tensor

from merging.options import Options
from merging.walk import Combine, Trim

ROUNDING = 1e-6
"""A sum of weights this small beside their magnitudes is zero."""


def add(trim: Trim, weights: Float64[Tensor, " n"], options: Options) -> Combine:
    """Return scale * sum_i w_i d_i, d what ``trim`` leaves; divided by sum_i w_i under ``normalize``.

    Raises:
        ValueError: the weights sum to zero under ``normalize``.
    """
    total = float(weights.sum())
    if options.normalize and abs(total) <= ROUNDING * float(weights.abs().sum()):
        raise ValueError(
            f"--weights: expected a sum other than zero to divide by, got {weights.tolist()}; "
            "change a weight, or add --no-normalize"
        )
    factor = options.scale / total if options.normalize else options.scale

    def combine(index: int, chunk: Float32[Tensor, "n r c"]) -> Float32[Tensor, "r c"]:
        return (trim(index, chunk) * _beside(weights, chunk)).sum(0) * factor

    return combine


def elect(
    trim: Trim, weights: Float64[Tensor, " n"], options: Options, *, precision: torch.dtype = torch.float64
) -> Combine:
    """Return scale * sum_i w_i d_i over the inputs whose w_i d_i has the elected sign.

    Under ``normalize`` each element is divided by the weights of the inputs that took part, where these do not
    cancel.  Reference: Yadav et al. 2023, TIES-Merging.
    """
    smallest = ROUNDING * float(weights.abs().sum())

    def combine(index: int, chunk: Float32[Tensor, "n r c"]) -> Float32[Tensor, "r c"]:
        factors = _beside(weights, chunk)
        parts = trim(index, chunk) * factors
        agree = agreeing(parts, precision)
        merged = (parts * agree).sum(0)
        if options.normalize:
            divisor = (factors * agree).sum(0)
            divisor += divisor.abs() <= smallest  # 1 where no input took part
            merged /= divisor
        return merged * options.scale

    return combine


def agreeing(parts: Float32[Tensor, "n r c"], precision: torch.dtype = torch.float64) -> Bool[Tensor, "n r c"]:
    """Return which elements have the sign of the sum over the inputs; a sum of zero counts as positive.

    A zero takes no part.  In float64 the sum of a few float32 numbers is exact as a rule, so that the vote does
    not depend on the order of the inputs even where they nearly cancel.

    >>> agreeing(torch.tensor([[[1.0, 2.0]], [[-3.0, -2.0]], [[0.0, 0.0]]])).int().flatten(1)
    tensor([[0, 1],
            [1, 0],
            [0, 0]], dtype=torch.int32)
    """
    votes = parts[0].to(precision, copy=True)
    for part in parts[1:]:
        votes += part
    elected = (votes >= 0).to(parts.dtype).mul_(2).sub_(1)  # 1 or -1; torch.where takes 20 times as long
    return parts * elected > 0


def _beside(weights: Float64[Tensor, " n"], chunk: Float32[Tensor, "n r c"]) -> Float32[Tensor, "n 1 1"]:
    return weights.to(chunk.device, torch.float32)[:, None, None]
