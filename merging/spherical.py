"""Means on the sphere: SLERP of two inputs and the Karcher mean of any number.

Direction and length are decided apart.  The direction is a point of the sphere spanned by the unit inputs
u_i = x_i / |x_i|, found on their N x N cosines alone; the length follows the norm rule:

- ``interpolate``: sum_i w_i |x_i|, the default;
- ``geometric``: prod_i |x_i|^w_i;
- ``base``: the norm of the base's tensor.

A zero input has no direction: it drops out of the direction and stays in the length, so that for two inputs
the result is the linear one.  There is no switch to linear interpolation at small angles; the ratios of
sines are exact in float64 down to the smallest.

Dimensions: n inputs, k those with a direction and a weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float64
from torch import Tensor

from merging.gram import Gram
from merging.solution import Solution

ANTIPODAL = 1e-3
"""Angles within this of pi have no well-determined arc between them."""

STEPS = 1000
"""Most steps of the Karcher iteration; inputs within 90 degrees of their mean need a few tens."""

Direction = Callable[[Float64[Tensor, "k k"], Float64[Tensor, " k"]], Float64[Tensor, " k"] | None]


def slerp(gram: Gram, weights: Float64[Tensor, " n"], *, norm: str, antipodal: str) -> Solution:
    """Return the coefficients of the point at ``t = weights[1]`` of the arc from input 0 to input 1.

    Reference: Shoemake 1985.  Antipodal inputs (pi - theta < 1e-3) follow the ``antipodal`` policy.

    Raises:
        ValueError: the inputs are antipodal and the policy is ``error``.

    >>> half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    >>> quarter = torch.tensor([[0, 1], [1, 0]], dtype=torch.float64) * torch.pi / 2
    >>> square = Gram(torch.eye(2, dtype=torch.float64), quarter, None)
    >>> slerp(square, half, norm="interpolate", antipodal="error").coefficients  # the diagonal, at length 1
    tensor([0.7071, 0.7071], dtype=torch.float64)
    """
    return _on_sphere(gram, weights, norm, antipodal)


def karcher(gram: Gram, weights: Float64[Tensor, " n"], *, norm: str, antipodal: str) -> Solution:
    """Return the coefficients of the weighted spherical mean: least sum of w_i theta_i^2.  Of two, it is slerp.

    Reference: Karcher 1977; the iteration is Buss and Fillmore 2001, Spherical averages, ACM TOG 20(2).
    The mean is unique while the inputs lie within 90 degrees of it; the note says when they do not.

    Raises:
        ValueError: no mean direction is determined and the policy is ``error``.
    """
    return _on_sphere(gram, weights, norm, antipodal)


def _on_sphere(gram: Gram, weights: Float64[Tensor, " n"], norm: str, antipodal: str) -> Solution:
    """Put direction and length together and apply the policies for zero and antipodal inputs."""
    norms = gram.norms
    live = (norms > 0) & (weights > 0)
    if not live.any():
        return Solution(weights, note="zero")
    angles = gram.angles[live][:, live]
    cosines = angles.cos()
    shares = weights[live] / weights[live].sum()
    direction = _arc(float(angles[0, 1]), shares) if len(shares) == 2 else _mean(cosines, shares)
    if direction is None:
        return _antipodal_solution(weights, antipodal)
    coefficients = torch.zeros_like(weights)
    coefficients[live] = _length(gram, weights, norm) * direction / norms[live]
    return Solution(coefficients, _note(norms, weights, cosines, direction))


def _arc(theta: float, shares: Float64[Tensor, " k"]) -> Float64[Tensor, " k"] | None:
    """Ratios of sines for two unit vectors at angle ``theta``; None if they are antipodal."""
    if math.pi - theta < ANTIPODAL:
        return None
    if theta == 0:
        return shares
    return torch.sin(shares * theta) / math.sin(theta)


def _mean(cosines: Float64[Tensor, "k k"], shares: Float64[Tensor, " k"]) -> Float64[Tensor, " k"] | None:
    """Karcher mean of unit vectors as coefficients over them, from their cosines; None if undetermined.

    With K the cosines and c the iterate: d = K c, tangent = sum_i w_i (theta_i / sin theta_i) (e_i - d_i c),
    then the exponential map and renormalisation by c' K c.
    """
    length = float(shares @ cosines @ shares)
    if length < ANTIPODAL**2:
        return None
    mean = shares / math.sqrt(length)
    for _ in range(STEPS):
        d = (cosines @ mean).clamp(-1, 1)
        theta = torch.acos(d)
        if bool((theta > math.pi - ANTIPODAL).any()):
            return None
        pull = shares * torch.where(theta > 1e-4, theta / theta.sin(), 1 + theta.square() / 6)
        tangent = pull - (pull @ d) * mean
        size = math.sqrt(max(0.0, float(tangent @ cosines @ tangent)))
        mean = math.cos(size) * mean + (math.sin(size) / size if size > 0 else 1.0) * tangent
        mean = mean / (mean @ cosines @ mean).sqrt()
        if float(tangent.abs().max()) < 1e-14:
            return mean
    return None


def _length(gram: Gram, weights: Float64[Tensor, " n"], norm: str) -> float:
    if norm == "base":
        assert gram.base_norm is not None
        return gram.base_norm
    if norm == "geometric":
        # 0 * log 0 is 0 here: an input of weight zero has no say.
        return float(torch.special.xlogy(weights, gram.norms).sum().exp())
    return float(weights @ gram.norms)


def _antipodal_solution(weights: Float64[Tensor, " n"], policy: str) -> Solution:
    if policy == "linear":
        return Solution(weights, note="antipodal: linear")
    if policy == "base":
        return Solution(torch.zeros_like(weights), note="antipodal: base", take_base=True)
    raise ValueError("expected inputs with a mean direction, got antipodal ones; add --antipodal linear or base")


def _note(
    norms: Float64[Tensor, " n"],
    weights: Float64[Tensor, " n"],
    cosines: Float64[Tensor, "k k"],
    direction: Float64[Tensor, " k"],
) -> str | None:
    if bool(((norms == 0) & (weights > 0)).any()):
        return "zero input"
    # A hair below zero is the rounding of inputs at exactly 90 degrees.
    return "not unique" if bool((cosines @ direction < -1e-9).any()) else None
