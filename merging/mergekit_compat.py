"""mergekit 0.1.5's own formulas as choices of coefficients, for ``compat: mergekit``.

They reproduce its numbers wherever it is defined, quirks included: lengths that follow from the formula and
no norm rule, linear interpolation above |cos| = 0.9995, thresholds on norms in absolute terms.  ``norm`` and
``antipodal`` of the options are not read, as mergekit has neither.  Where it divides noise by noise
(antipodal inputs), so does its result; ours is then some point of the same formula.

mergekit is Goddard et al. 2024, arXiv:2403.13257; each function names the thresholds that it keeps.

Dimensions: g groups, n inputs.
"""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from merging.gram import Gram
from merging.options import Options
from merging.solution import Solution
from merging.spherical import normalised, times

ITERATIONS = 10
"""Steps of its Karcher mean, converged or not."""

KARCHER_TOLERANCE = 1e-5
"""Norms, angles and steps below it count as nothing in its Karcher mean."""


def slerp(gram: Gram, weights: Float64[Tensor, "g n"], options: Options) -> Solution:
    """Return the ratios of sines, applied to the inputs at their own lengths; linear above |cos| = 0.9995.

    A zero input is at 90 degrees of the other.  Antipodal inputs are merged linearly.  Always defined.

    >>> products = torch.tensor([[[1.0, 0.0], [0.0, 9.0]]], dtype=torch.float64)
    >>> slerp(Gram(products, products), torch.tensor([[0.5, 0.5]], dtype=torch.float64), Options()).coefficients
    tensor([[0.7071, 0.7071]], dtype=torch.float64)
    """
    cosine = _cosines(gram, gram.norms.where(gram.norms > 1e-8, 1))[:, 0, 1:]
    return Solution(_sines(weights, cosine, linear=cosine.abs() > 0.9995))


def nuslerp(gram: Gram, weights: Float64[Tensor, "g n"], options: Options) -> Solution:
    """Return the ratios of sines, applied to the inputs at their own lengths; linear where they are parallel.

    A zero input is at 90 degrees of the other.  Always defined; of no meaning close to antipodal.
    """
    cosine = _cosines(gram, gram.norms.clamp(min=1e-7))[:, 0, 1:]
    return Solution(_sines(weights, cosine, linear=1 - cosine.square() <= 1e-16))


def karcher(gram: Gram, weights: Float64[Tensor, "g n"], options: Options) -> Solution:
    """Return ten gradient steps from the normalised linear mean, at the interpolated length.

    An input with a norm up to 1e-5 drops out of the direction and stays in the length; without any other the
    result is zero.  Where the linear mean vanishes the first input takes its place.  mergekit itself has equal
    weights only.
    """
    norms = gram.norms
    counted = norms > KARCHER_TOLERANCE
    pairs = counted.unsqueeze(-1) & counted.unsqueeze(-2)
    cosines = _cosines(gram, norms.where(counted, 1)).where(pairs, 0).contiguous()
    shares = weights.where(counted, 0)
    whole = shares.sum(-1, keepdim=True)
    shares = shares / whole.where(whole != 0, 1)
    mean, extent = normalised(cosines, shares)
    first = (counted & (counted.cumsum(-1) == 1)).to(weights.dtype)
    mean = mean.where(extent >= KARCHER_TOLERANCE, first)
    stopped = torch.zeros_like(extent, dtype=torch.bool)
    for _ in range(ITERATIONS):
        following, size = _gradient_step(cosines, shares, mean)
        stopped = stopped | (size < KARCHER_TOLERANCE)
        mean = mean.where(stopped, following)
    extent = (weights * norms).sum(-1, keepdim=True)
    return Solution(extent / norms.where(counted, 1) * mean)


def multislerp(gram: Gram, weights: Float64[Tensor, "g n"], options: Options) -> Solution:
    """Return the linear mean of the unit inputs at the interpolated length.

    The tangent step of its formula starts at that mean, where the tangents of the inputs cancel, so it adds
    nothing.  Where the mean is shorter than 1e-8, two inputs are merged linearly and more are refused.
    """
    inverse = 1 / (gram.norms + 1e-8)
    shares = weights * inverse
    extent = (times(gram.products, shares) * shares).sum(-1, keepdim=True).clamp(min=0).sqrt()
    vanishes = extent < 1e-8
    length = (weights * gram.norms).sum(-1, keepdim=True)
    coefficients = weights.where(vanishes, length / extent.where(~vanishes, 1) * shares)
    if weights.shape[-1] == 2:
        return Solution(coefficients)
    return Solution(
        coefficients,
        refused=vanishes.squeeze(-1),
        reason="expected inputs with a mean direction under --compat mergekit, whose multislerp has no other rule, "
        "got zero or balanced ones; leave --compat out",
    )


def model_stock(gram: Gram, weights: Float64[Tensor, "g n"], options: Options) -> Solution:
    """Return the plain mean of the task vectors times t = n cos / (1 + (n - 1) cos).

    Products of norms below 1e-6 count as 1e-6, which shrinks the cosines of small tensors.  The base is kept
    where the denominator is within 1e-6 of zero; a negative one is used as it is.
    """
    n = weights.shape[-1]
    norms = gram.norms
    lengths = (norms.unsqueeze(-1) * norms.unsqueeze(-2)).clamp(min=1e-6)
    cosines = (gram.products / lengths).clamp(-1, 1)
    eye = torch.eye(n, dtype=torch.bool, device=weights.device)
    cosine = cosines.masked_fill(eye, 0.0).sum(-1, keepdim=True).sum(-2) / (n * (n - 1))
    denominator = 1 + (n - 1) * cosine
    kept = denominator.abs() < 1e-6
    t = (n * cosine / denominator.where(~kept, 1)).masked_fill(kept, 0.0)
    return Solution((t / n).expand_as(weights).clone())


def _cosines(gram: Gram, lengths: Float64[Tensor, "g n"]) -> Float64[Tensor, "g n n"]:
    return (gram.products / (lengths.unsqueeze(-1) * lengths.unsqueeze(-2))).clamp(-1, 1)


def _sines(
    weights: Float64[Tensor, "g 2"], cosine: Float64[Tensor, "g 1"], *, linear: Tensor
) -> Float64[Tensor, "g 2"]:
    theta = cosine.acos()
    return weights.where(linear, (weights * theta).sin() / theta.sin())


def _gradient_step(
    cosines: Float64[Tensor, "g n n"], shares: Float64[Tensor, "g n"], mean: Float64[Tensor, "g n"]
) -> tuple[Float64[Tensor, "g n"], Float64[Tensor, "g 1"]]:
    """Return the next iterate and the length of the step to it."""
    d = times(cosines, mean).clamp(-1, 1)
    theta = d.acos()
    pull = (shares * theta / theta.sin()).where(theta >= KARCHER_TOLERANCE, 0)
    direction, size = normalised(cosines, pull - (pull * d).sum(-1, keepdim=True) * mean)
    following, _ = normalised(cosines, size.cos() * mean + size.sin() * direction)
    return following, size
