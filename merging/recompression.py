"""Recompression: the best approximation of an update by factors of a lower rank, and what it loses.

By Eckart and Young 1936 the best one keeps the largest singular values, and the error is the norm of the others.
For a product of factors QR leaves a small matrix to decompose; a dense matrix that is large is decomposed by
subspace iteration (Halko, Martinsson and Tropp 2011, SIAM Review 53(2), algorithm 4.4).

Dimensions: out and in, the sides of the weight; k, the rank before; r, the rank after.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from merging.pieces import row_ranges

DECOMPOSED_WHOLE = 512
"""Smaller side up to which a dense matrix is decomposed as a whole."""

OVERSAMPLING = 16
"""Directions that subspace iteration follows besides those that are kept."""

ROUNDS = 40
"""Most rounds of subspace iteration; a few are usual."""

SETTLED = 1e-7
"""Relative change of what is captured below which subspace iteration ends."""

Compressed = tuple[Float32[Tensor, "out r"], Float32[Tensor, "r in"], float]
"""B, A and the norm of what is lost."""


def compress_product(b: Float64[Tensor, "out k"], a: Float64[Tensor, "k in"], rank: int) -> Compressed:
    """Return factors of ``b @ a`` of rank ``rank`` or less, and the norm of what is lost.

    Both factors carry the roots of the singular values.  The rank is lower where the product's own rank is.

    >>> b, a, error = compress_product(torch.eye(2).double(), torch.tensor([[3.0, 0.0], [0.0, 4.0]]).double(), 1)
    >>> (b @ a)[1, 1], round(error, 6)
    (tensor(4.), 3.0)
    """
    left, small_b = torch.linalg.qr(b)
    right, small_a = torch.linalg.qr(a.mT)
    u, s, vh = torch.linalg.svd(small_b @ small_a.mT, full_matrices=False)
    kept, error = _cut(s, rank)
    root = s[:kept].sqrt()
    return (left @ (u[:, :kept] * root)).float(), (root[:, None] * (vh[:kept] @ right.mT)).float(), error


def compress_dense(matrix: Float32[Tensor, "out in"], rank: int, *, whole: int = DECOMPOSED_WHOLE) -> Compressed:
    """Return factors of a dense matrix of rank ``rank`` or less, and the norm of what is lost.

    Beyond ``whole`` on the smaller side the singular vectors are found by iteration; the error is then that of the
    factors found, measured.
    """
    if min(matrix.shape) <= max(whole, rank + OVERSAMPLING):
        u, s, vh = torch.linalg.svd(matrix.to(torch.float64), full_matrices=False)
        kept, error = _cut(s, rank)
        root = s[:kept].sqrt()
        return (u[:, :kept] * root).float(), (root[:, None] * vh[:kept]).float(), error
    right = _leading_rows(matrix, rank)
    b, a = (matrix @ right).double(), right.mT.double()
    found_b, found_a, _ = compress_product(b, a, rank)
    return found_b, found_a, _distance(matrix, found_b, found_a)


def _cut(values: Float64[Tensor, " s"], rank: int) -> tuple[int, float]:
    """Return how many singular values to keep (at least one) and the norm of the others."""
    noise = float(values[0]) * len(values) * torch.finfo(torch.float64).eps
    kept = max(1, min(rank, int((values > noise).sum())))
    return kept, float(values[kept:].square().sum().sqrt())


def _leading_rows(matrix: Float32[Tensor, "out in"], rank: int) -> Float32[Tensor, "in k"]:
    """Return orthonormal columns that span the leading right singular vectors, found by subspace iteration."""
    generator = torch.Generator().manual_seed(0)
    frame = torch.randn(matrix.shape[1], rank + OVERSAMPLING, generator=generator).to(matrix.device)
    captured = 0.0
    for _ in range(ROUNDS):
        frame = torch.linalg.qr(matrix.mT @ torch.linalg.qr(matrix @ frame).Q).Q
        image = torch.linalg.svdvals((matrix @ frame).double())
        before, captured = captured, float(image[:rank].square().sum())
        if captured - before <= SETTLED * captured:
            break
    return frame


def _distance(matrix: Float32[Tensor, "out in"], b: Float32[Tensor, "out r"], a: Float32[Tensor, "r in"]) -> float:
    total = 0.0
    for start, stop in row_ranges(matrix.shape):
        rest = matrix[start:stop].double() - b[start:stop].double() @ a.double()
        total += float(rest.square().sum())
    return math.sqrt(total)
