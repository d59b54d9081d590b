"""Means on the sphere: SLERP of two inputs and the Karcher mean of any number, for many groups at once.

Direction and length are decided apart.  The direction is a point of the sphere spanned by the unit inputs
u_i = x_i / |x_i|, found on their n x n cosines alone; the length follows the norm rule:

- ``interpolate``: sum_i w_i |x_i|, the default;
- ``geometric``: prod_i |x_i|^w_i;
- ``base``: the norm of the base's tensor.

A zero input has no direction: it drops out of the direction and stays in the length, so that for two inputs
the result is the linear one.  An input of weight zero has no say.  There is no switch to linear
interpolation at small angles; the ratios of sines are exact in float64 down to the smallest.  Weights
outside [0, 1] go on along the same arc, and an interpolated length goes on through zero, as it does in
linear extrapolation, of which this is the limit at small angles.

A group's result does not depend on the groups that share its batch, bit for bit: sums run over the last
axis, and no function is used whose vectorised and scalar forms round differently (atan2 and pow do).

Dimensions: g groups, n inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from merging.gram import Gram
from merging.options import Norm, Options
from merging.solution import Solution

ANTIPODAL = 1e-3
"""Angles within this of pi have no well-determined arc between them."""

NO_DIRECTION = (
    "expected inputs with a mean direction, got antipodal ones, or weights outside [0, 1] that leave none; "
    "add --antipodal linear or base"
)
"""The reason given where no mean exists."""

STEPS = 60
"""Most steps of the Karcher iteration; inputs within 90 degrees of their mean need about four."""

CLOSE = 1e-12
"""A step this small, relative to the coefficients, is the last: the error behind it is about its square."""

LONGEST_STEP = 0.5
"""Radians that the Karcher iteration moves at most, so that it stays where its model of the sphere holds."""

FLATTEST = 0.05
"""Least curvature that a step assumes; it falls below only when inputs lie about 90 degrees from the mean."""

Direction = Callable[
    [Float64[Tensor, "g n n"], Float64[Tensor, "g n"]], tuple[Float64[Tensor, "g n"], Bool[Tensor, " g"]]
]
"""(cosines, shares) -> (a unit vector as coefficients over the unit inputs, the groups in which it is determined).

Shares sum to 1; those of inputs without a say are 0, and so are their cosines.
"""


def slerp(gram: Gram, weights: Float64[Tensor, "g n"], options: Options) -> Solution:
    """Return the coefficients of the point at ``t = weights[:, 1]`` of the arc from input 0 to input 1.

    Undefined for antipodal inputs (pi - theta < 1e-3), which follow ``options.antipodal``.  t outside [0, 1]
    goes on along the great circle.

    Reference: Shoemake 1985, Animating rotation with quaternion curves, SIGGRAPH.

    >>> angles = torch.tensor([[[0, 1], [1, 0]]], dtype=torch.float64) * torch.pi / 2
    >>> square = Gram(torch.eye(2, dtype=torch.float64).unsqueeze(0), angles, None)
    >>> half = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    >>> slerp(square, half, Options()).coefficients  # the diagonal, at length 1
    tensor([[0.7071, 0.7071]], dtype=torch.float64)
    """
    assert weights.shape[-1] == 2, "slerp is of two inputs"
    return on_sphere(gram, weights, options, _karcher_direction)


def karcher(gram: Gram, weights: Float64[Tensor, "g n"], options: Options) -> Solution:
    """Return the coefficients of the weighted spherical mean: least sum of w_i theta_i^2.  Of two, it is slerp.

    The mean is unique while the inputs lie within 90 degrees of it; the note ``not unique`` says where they do
    not.  It is undefined where the sum of the weighted unit inputs vanishes, or where an input is antipodal to
    it; such groups follow ``options.antipodal``.  With negative weights it is the point where the weighted
    pulls of the inputs cancel, reached from their linear mean; undefined where there is none.

    Reference: Karcher 1977, Riemannian center of mass and mollifier smoothing, CPAM 30(5); the iteration is
    Newton's, as in Buss and Fillmore 2001, Spherical averages, ACM TOG 20(2).

    >>> angles = (1 - torch.eye(3, dtype=torch.float64)).unsqueeze(0) * torch.pi / 2
    >>> axes = Gram(torch.eye(3, dtype=torch.float64).unsqueeze(0), angles, None)
    >>> karcher(axes, torch.full((1, 3), 1 / 3, dtype=torch.float64), Options()).coefficients
    tensor([[0.5774, 0.5774, 0.5774]], dtype=torch.float64)
    """
    return on_sphere(gram, weights, options, _karcher_direction)


def on_sphere(gram: Gram, weights: Float64[Tensor, "g n"], options: Options, direction: Direction) -> Solution:
    """Put direction and length together and apply the policies for zero and antipodal inputs.

    ``direction`` is asked for three inputs or more with a say; for two all means on the sphere are slerp.
    """
    live = have_direction(gram, weights)
    pairs = live.unsqueeze(-1) & live.unsqueeze(-2)
    angles = gram.angles.where(pairs, 0)
    shares, determined = _ratio(weights.where(live, 0), weights.where(live, 0).sum(-1, keepdim=True))
    unit, found = _arc(angles, shares)
    many = live.sum(-1) > 2
    notes: dict[str, Bool[Tensor, " g"]] = {}
    if weights.shape[-1] > 2:
        cosines = angles.cos().where(pairs, 0).contiguous()
        mean, mean_found = direction(cosines, shares)
        unit, found = mean.where(many.unsqueeze(-1), unit), mean_found.where(many, found)
        # A hair below zero is the rounding of inputs at exactly 90 degrees.
        notes["not unique"] = many & found & (times(cosines, unit) < -1e-9).any(-1)
    extent = length(gram, weights, options.norm).unsqueeze(-1)
    coefficients = extent / gram.norms.where(live, 1) * unit
    return settled(gram, weights, options, coefficients, determined.all(-1) & found, notes)


def have_direction(gram: Gram, weights: Float64[Tensor, "g n"]) -> Bool[Tensor, "g n"]:
    """Say which inputs point somewhere and have a weight."""
    return (gram.norms > 0) & (weights != 0)


def length(gram: Gram, weights: Float64[Tensor, "g n"], norm: Norm) -> Float64[Tensor, " g"]:
    """Return the length that the norm rule asks for.

    Infinite for ``geometric`` with a zero input of negative weight.
    """
    if norm == "base":
        assert gram.base_norms is not None
        return gram.base_norms
    if norm == "geometric":
        # 0 * log 0 is 0 here: an input of weight zero has no say.
        return torch.special.xlogy(weights, gram.norms).sum(-1).exp()
    return (weights * gram.norms).sum(-1)


def settled(
    gram: Gram,
    weights: Float64[Tensor, "g n"],
    options: Options,
    coefficients: Float64[Tensor, "g n"],
    determined: Bool[Tensor, " g"],
    notes: dict[str, Bool[Tensor, " g"]],
) -> Solution:
    """Return the solution, with the policies applied where no input points anywhere or no mean is determined."""
    empty = ~have_direction(gram, weights).any(-1)
    lost = ~empty & ~(determined & coefficients.isfinite().all(-1))
    notes = {
        "zero": empty,
        "zero input": ((gram.norms == 0) & (weights != 0)).any(-1) & ~empty,
        **{note: mask & ~lost for note, mask in notes.items()},
    }
    coefficients = weights.where((empty | lost).unsqueeze(-1), coefficients)
    if options.antipodal == "error":
        return Solution(coefficients, notes, refused=lost, reason=NO_DIRECTION)
    notes[f"antipodal: {options.antipodal}"] = lost
    if options.antipodal == "linear":
        return Solution(coefficients, notes)
    return Solution(coefficients.masked_fill(lost.unsqueeze(-1), 0.0), notes, take_base=lost)


def times(matrix: Float64[Tensor, "g n n"], vector: Float64[Tensor, "g n"]) -> Float64[Tensor, "g n"]:
    """Return the matrix-vector products.

    A batched matrix product may add in another order for another batch size; a sum over the last axis does not.
    """
    return (matrix * vector.unsqueeze(-2)).sum(-1)


def normalised(
    cosines: Float64[Tensor, "g n n"], vector: Float64[Tensor, "g n"]
) -> tuple[Float64[Tensor, "g n"], Float64[Tensor, "g 1"]]:
    """Return vectors over the unit inputs brought to length 1, and the lengths they had; zero stays zero."""
    extent = (times(cosines, vector) * vector).sum(-1, keepdim=True).clamp(min=0).sqrt()
    return vector / extent.where(extent > 0, 1), extent


def _ratio(
    part: Float64[Tensor, "g n"], whole: Float64[Tensor, "g 1"]
) -> tuple[Float64[Tensor, "g n"], Bool[Tensor, "g 1"]]:
    """Return part / whole, and where that is determined: weights of both signs may sum to nothing."""
    determined = whole.abs() > 1e-9
    return part / whole.where(determined, 1), determined


def _arc(
    angles: Float64[Tensor, "g n n"], shares: Float64[Tensor, "g n"]
) -> tuple[Float64[Tensor, "g n"], Bool[Tensor, " g"]]:
    """Return the ratios of sines for groups with at most two live inputs: their angle is the only one."""
    theta = angles.amax((-2, -1)).unsqueeze(-1)
    unit = ((shares * theta).sin() / theta.sin()).where(theta > 0, shares)
    return unit, (math.pi - theta >= ANTIPODAL).squeeze(-1)


def _karcher_direction(
    cosines: Float64[Tensor, "g n n"], shares: Float64[Tensor, "g n"]
) -> tuple[Float64[Tensor, "g n"], Bool[Tensor, " g"]]:
    """Return the Karcher means of unit vectors.

    All groups step together; one that has arrived, or that has no mean, stands still.
    """
    mean, extent = normalised(cosines, shares)
    lost = extent.squeeze(-1) < ANTIPODAL
    arrived = torch.zeros_like(lost)
    for _ in range(STEPS):
        following, last, opposite = _step(cosines, shares, mean)
        lost = lost | (opposite & ~arrived)
        mean = mean.where((arrived | lost).unsqueeze(-1), following)
        arrived = arrived | (last & ~lost)
        # On another device the question would halt the host at every step.
        if mean.device.type == "cpu" and bool((arrived | lost).all()):
            break
    return mean, arrived


def _step(
    cosines: Float64[Tensor, "g n n"], shares: Float64[Tensor, "g n"], mean: Float64[Tensor, "g n"]
) -> tuple[Float64[Tensor, "g n"], Bool[Tensor, " g"], Bool[Tensor, " g"]]:
    """Return the next iterate, whether the step was the last, and whether an input is antipodal to the mean.

    With m the mean, d_i = cos theta_i its cosine with input i and p_i = u_i - d_i m, the pull on m is
    a = sum_i a_i p_i with a_i = w_i theta_i / sin theta_i.  The Hessian of sum_i w_i theta_i^2 / 2 is
    b + sum_i c_i p_i p_i' with b = sum_i w_i theta_i cot theta_i and c_i = w_i (1 - theta_i cot theta_i) / sin^2 theta_i,
    so Newton's step is sum_i y_i p_i where b y_i + c_i sum_j (p_i . p_j) y_j = a_i.
    """
    d = times(cosines, mean).clamp(-1, 1)
    theta = d.acos()
    sine = theta.sin()
    near = theta < 1e-4
    ratio = (1 + theta.square() / 6).where(near, theta / sine)
    pull = shares * ratio
    # Bounded below, it keeps the matrix of positive weights positive definite: the step then goes downhill.
    spread = (shares * ratio * d).sum(-1).clamp(min=FLATTEST)
    radial = (shares / 3).where(near, shares * (1 - ratio * d) / sine.square())
    tangents = cosines - d.unsqueeze(-1) * d.unsqueeze(-2)
    eye = torch.eye(d.shape[-1], dtype=d.dtype, device=d.device)
    y = _solve(spread[:, None, None] * eye + radial.unsqueeze(-1) * tangents, pull)
    step, size = normalised(cosines, y - (y * d).sum(-1, keepdim=True) * mean)
    last = (size * step).abs().amax(-1) <= CLOSE * mean.abs().amax(-1)
    size = size.clamp(max=LONGEST_STEP)
    following, _ = normalised(cosines, size.cos() * mean + size.sin() * step)
    opposite = (theta > math.pi - ANTIPODAL).any(-1)
    return following, last, opposite


def _solve(matrix: Float64[Tensor, "g n n"], right: Float64[Tensor, "g n"]) -> Float64[Tensor, "g n"]:
    """Solve by elimination without pivots, which the matrices of ``_step`` (b + diagonal times Gram) do not need.

    ``torch.linalg.solve`` chooses its algorithm by the batch, and halts the host to look for singular matrices.
    """
    rows = torch.cat([matrix, right.unsqueeze(-1)], -1)
    for k in range(right.shape[-1]):
        pivot = rows[:, k : k + 1] / rows[:, k : k + 1, k : k + 1]
        rows = rows - rows[:, :, k : k + 1] * pivot
        rows[:, k] = pivot.squeeze(1)
    return rows[..., -1]
