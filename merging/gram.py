"""Pass 1: the inner products of the inputs, or of their differences from the base.

Everything a coefficient method needs is here: N norms and the angles between N vectors, for many groups at
once.  Differences from the base are formed before the products, because differences of Gram entries cancel
when a checkpoint lies close to its base.  Products are float64 throughout: with chunks that stay in cache
this costs as much as reading them, and no case near 0 or pi needs another precision.

Dimensions: g groups (tensors, rows, layers or one model), n inputs, m elements of a chunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

NEARLY_PARALLEL = 1e-8
"""1 - |cos| below which an angle is measured again, from unit vectors.

The Gram gives the angle to about 1e-16 / theta^2 (relative): 5e-9 here, at 1.4e-4 rad, and worse below.
"""


@dataclass(frozen=True)
class Gram:
    """What groups of tensors look like across the inputs."""

    products: Float64[Tensor, "g n n"]
    angles: Float64[Tensor, "g n n"]
    """Radians in [0, pi]; NaN between a zero vector and any other, 0 on the diagonal."""
    base_norms: Float64[Tensor, " g"] | None = None
    """Norms of the base's own tensors, when the norm rule asks for them."""

    @property
    def norms(self) -> Float64[Tensor, "g n"]:
        return self.products.diagonal(dim1=-2, dim2=-1).sqrt()

    def lengths(self, coefficients: Float64[Tensor, "g n"]) -> Float64[Tensor, " g"]:
        """Norms of the vectors with these coefficients over the inputs."""
        square = (coefficients.unsqueeze(-1) * self.products * coefficients.unsqueeze(-2)).sum(-1).sum(-1)
        return square.clamp(min=0).sqrt()


def angles_of(products: Float64[Tensor, "g n n"]) -> Float64[Tensor, "g n n"]:
    """Return the angles of Gram matrices by 2 atan(|d| / |s|), d and s the difference and sum of unit vectors.

    NaN between a zero vector and any other.

    >>> angles_of(torch.tensor([[[1.0, 2.0], [2.0, 16.0]]], dtype=torch.float64)).rad2deg()
    tensor([[[ 0.0000, 60.0000],
             [60.0000,  0.0000]]], dtype=torch.float64)
    """
    norms = products.diagonal(dim1=-2, dim2=-1).sqrt()
    cosines = (products / (norms.unsqueeze(-1) * norms.unsqueeze(-2))).clamp(-1, 1)
    # Not atan2, whose rounding depends on where in a batch a number stands.
    angles = 2 * torch.atan((1 - cosines).sqrt() / (1 + cosines).sqrt())
    eye = torch.eye(products.shape[-1], dtype=torch.bool, device=products.device)
    return angles.masked_fill(eye, 0.0)


def add_products(chunk: Float64[Tensor, "n m"], into: Float64[Tensor, "n n"]) -> None:
    """Add the inner products of the rows of ``chunk`` to the upper triangle of ``into``.

    Row by row: a matrix product would compute both halves, and takes half as long again.
    """
    for i in range(len(chunk)):
        into[i, i:] += torch.mv(chunk[i:], chunk[i])


def mirrored(products: Float64[Tensor, "*g n n"]) -> Float64[Tensor, "*g n n"]:
    """Return symmetric matrices from their upper triangles."""
    return products.triu() + products.triu(1).mT


def pairs_to_measure_again(products: Float64[Tensor, "n n"]) -> list[tuple[int, int]]:
    """Return the pairs (i < j) whose angle is too close to 0 or pi to be read from the Gram matrix."""
    cosines = angles_of(products.unsqueeze(0))[0].cos().abs()
    return [(int(i), int(j)) for i, j in (cosines > 1 - NEARLY_PARALLEL).triu(1).nonzero()]


def small_angle(square: float, *, opposite: bool) -> float:
    """Return the angle of two unit vectors from |u - v|^2, or from |u + v|^2 if they are ``opposite``.

    |u - v|^2 + |u + v|^2 = 4: the small one was summed over the elements, the other follows.

    >>> small_angle(2.0, opposite=False) / math.pi
    0.5
    """
    angle = 2 * math.atan2(math.sqrt(square), math.sqrt(max(0.0, 4 - square)))
    return math.pi - angle if opposite else angle
