"""Spherical means out of SLERPs of two: as a tree of neighbours, or one input after another.

Both depend on the order of three inputs or more, where the Karcher mean does not; they need no iteration, and
agree with it to second order in the angles.  Each arc is divided by the weights on its two sides, so every
input has the share of its weight.  The length is that of the norm rule on all weights, as for ``karcher``.

Dimensions: g groups, n inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from merging.gram import Gram
from merging.options import Options
from merging.solution import Solution
from merging.spherical import ANTIPODAL, normalised, on_sphere, times


def hierarchical_slerp(gram: Gram, weights: Float64[Tensor, "g n"], options: Options) -> Solution:
    """Return the coefficients of SLERPs of neighbours (0 with 1, 2 with 3, ...), then of the results, as a tree.

    An odd one moves up unpaired.  Of two inputs it is slerp.  Undefined where the two ends of an arc are
    antipodal (pi - theta < 1e-3); such groups follow ``options.antipodal``.

    Reference: Shoemake 1985, pairwise; the tree as in Buss and Fillmore 2001, Spherical averages, ACM TOG 20(2).

    >>> angles = (1 - torch.eye(4, dtype=torch.float64)).unsqueeze(0) * torch.pi / 2
    >>> axes = Gram(torch.eye(4, dtype=torch.float64).unsqueeze(0), angles, None)
    >>> hierarchical_slerp(axes, torch.full((1, 4), 0.25, dtype=torch.float64), Options()).coefficients
    tensor([[0.5000, 0.5000, 0.5000, 0.5000]], dtype=torch.float64)
    """
    return on_sphere(gram, weights, options, _tree)


def sequential_slerp(gram: Gram, weights: Float64[Tensor, "g n"], options: Options) -> Solution:
    """Return the coefficients of a running mean: the k-th input joins it by SLERP at w_k / (w_1 + ... + w_k).

    With equal weights that is 1 / k.  Of two inputs it is slerp.  Undefined where an input is antipodal to the
    mean so far (pi - theta < 1e-3); such groups follow ``options.antipodal``.

    Reference: Shoemake 1985, pairwise; the running mean as in Rame et al. 2024, WARP, arXiv:2406.16768.

    >>> angles = (1 - torch.eye(4, dtype=torch.float64)).unsqueeze(0) * torch.pi / 2
    >>> axes = Gram(torch.eye(4, dtype=torch.float64).unsqueeze(0), angles, None)
    >>> sequential_slerp(axes, torch.full((1, 4), 0.25, dtype=torch.float64), Options()).coefficients
    tensor([[0.5658, 0.5658, 0.4619, 0.3827]], dtype=torch.float64)
    """
    return on_sphere(gram, weights, options, _chain)


@dataclass(frozen=True)
class _Node:
    """A mean of some of the inputs, in every group."""

    mean: Float64[Tensor, "g n"]
    """Over the unit inputs; of length 1, or zero where none of its inputs has a say."""
    share: Float64[Tensor, "g 1"]
    """The sum of their shares."""
    determined: Bool[Tensor, " g"]


def _tree(
    cosines: Float64[Tensor, "g n n"], shares: Float64[Tensor, "g n"]
) -> tuple[Float64[Tensor, "g n"], Bool[Tensor, " g"]]:
    nodes = _leaves(cosines, shares)
    while len(nodes) > 1:
        paired = [_join(cosines, left, right) for left, right in zip(nodes[::2], nodes[1::2], strict=False)]
        nodes = paired + nodes[2 * len(paired) :]
    return nodes[0].mean, nodes[0].determined


def _chain(
    cosines: Float64[Tensor, "g n n"], shares: Float64[Tensor, "g n"]
) -> tuple[Float64[Tensor, "g n"], Bool[Tensor, " g"]]:
    running, *others = _leaves(cosines, shares)
    for other in others:
        running = _join(cosines, running, other)
    return running.mean, running.determined


def _leaves(cosines: Float64[Tensor, "g n n"], shares: Float64[Tensor, "g n"]) -> list[_Node]:
    # An input without a say has no cosine with itself either, so its leaf is the zero vector.
    mean = torch.diag_embed(cosines.diagonal(dim1=-2, dim2=-1))
    determined = torch.ones_like(shares[:, 0], dtype=torch.bool)
    return [_Node(mean[:, i], shares[:, i : i + 1], determined) for i in range(shares.shape[-1])]


def _join(cosines: Float64[Tensor, "g n n"], left: _Node, right: _Node) -> _Node:
    """SLERP two nodes.  A zero one is at 90 degrees of everything and has no share, so the other passes through."""
    share = left.share + right.share
    # Shares of both signs may cancel; those of two zero nodes are nothing and need no position.
    cancelled = (share.abs() <= 1e-9) & (left.share.abs() > 1e-9)
    position = (right.share / share.where(share != 0, 1)).where(~cancelled, 0)
    theta = (times(cosines, left.mean) * right.mean).sum(-1, keepdim=True).clamp(-1, 1).acos()
    sine = theta.sin()
    first = (((1 - position) * theta).sin() / sine).where(theta > 0, 1 - position)
    second = ((position * theta).sin() / sine).where(theta > 0, position)
    mean, _ = normalised(cosines, first * left.mean + second * right.mean)
    fits = (math.pi - theta >= ANTIPODAL) & ~cancelled
    return _Node(mean, share, left.determined & right.determined & fits.squeeze(-1))
