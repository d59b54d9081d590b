"""Methods along straight lines: the average, the average at another length, and one model as it is.

Dimensions: g groups, n inputs.
"""

from __future__ import annotations

from jaxtyping import Float64
from torch import Tensor

from merging.gram import Gram
from merging.options import Options
from merging.solution import Solution
from merging.spherical import ANTIPODAL, length, settled, times


def linear(gram: Gram, weights: Float64[Tensor, "g n"], options: Options) -> Solution:
    """Return the weights themselves: an average needs neither angles nor a norm rule.  Always defined.

    With equal weights it is the plain soup.

    Reference: Wortsman et al. 2022, Model soups, arXiv:2203.05482.
    """
    return Solution(weights)


def norm_matched(gram: Gram, weights: Float64[Tensor, "g n"], options: Options) -> Solution:
    """Return the coefficients of the soup brought to the length of the norm rule.

    The direction is the weighted average's own, not the arc's: with unequal norms the longer input pulls more.
    Undefined where the average is shorter than 5e-4 of the lengths that went into it, as of inputs 1e-3 from
    antipodal; such groups follow ``options.antipodal``.

    Reference: Shoemake 1985, Animating rotation with quaternion curves, SIGGRAPH (normalised interpolation).

    >>> import torch
    >>> angles = torch.tensor([[[0, 1], [1, 0]]], dtype=torch.float64) * torch.pi / 2
    >>> square = Gram(torch.eye(2, dtype=torch.float64).unsqueeze(0), angles, None)
    >>> norm_matched(square, torch.tensor([[0.5, 0.5]], dtype=torch.float64), Options()).coefficients
    tensor([[0.7071, 0.7071]], dtype=torch.float64)
    """
    soup = (times(gram.products, weights) * weights).sum(-1).clamp(min=0).sqrt()
    whole = (weights.abs() * gram.norms).sum(-1)
    determined = soup > ANTIPODAL / 2 * whole
    # The average has the sign of a length that was extrapolated through zero already.
    stretch = length(gram, weights, options.norm).abs() / soup.where(determined, 1)
    return settled(gram, weights, options, stretch.unsqueeze(-1) * weights, determined, {})


def passthrough(gram: Gram, weights: Float64[Tensor, "g n"], options: Options) -> Solution:
    """Return ``options.scale`` for the only input: a model, or a base with its adapter folded in.  Always defined.

    Reference: Hu et al. 2021, LoRA, arXiv:2106.09685 (folding).
    """
    assert weights.shape[-1] == 1, "passthrough is of one input"
    return Solution(weights.new_full(weights.shape, options.scale))
