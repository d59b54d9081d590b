"""Pass 1: the inner products of the inputs, or of their differences from the base, for one tensor.

Everything a coefficient method needs is here: N norms and the angles between N vectors.  Differences from
the base are formed before the products, because differences of Gram entries cancel when a checkpoint lies
close to its base.  Products are float64 throughout: with chunks that stay in cache this costs as much as
reading them, and no case near 0 or pi needs another precision.

Dimensions: n inputs, m elements of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from merging.sources import TensorSource, as_matrix

CHUNK = 2**16
"""Elements of a chunk: 0.5 MiB in float64, so a few inputs stay in the processor's cache.

The boundaries depend on the shape alone, never on the memory allowed, so that results do not either.
"""

NEARLY_PARALLEL = 1e-8
"""1 - |cos| below which an angle is measured again, from unit vectors.

The Gram gives the angle to about 1e-16 / theta^2 (relative): 5e-9 here, at 1.4e-4 rad, and worse below.
"""


@dataclass(frozen=True)
class Gram:
    """What one tensor looks like across the inputs."""

    products: Float64[Tensor, "n n"]
    angles: Float64[Tensor, "n n"]
    """Radians in [0, pi], right to 1e-7 (relative) from 1e-6 rad up; NaN where an input is zero."""
    base_norm: float | None
    """Norm of the base's own tensor, when the norm rule asks for it."""

    @property
    def norms(self) -> Float64[Tensor, " n"]:
        return self.products.diagonal().sqrt()

    def length(self, coefficients: Float64[Tensor, " n"]) -> float:
        """Norm of the vector with these coefficients over the inputs."""
        return float((coefficients @ self.products @ coefficients).clamp(min=0).sqrt())


def measure(name: str, inputs: Sequence[TensorSource], origin: TensorSource | None, base: TensorSource | None) -> Gram:
    """Return the Gram matrix and the angles of ``inputs`` minus ``origin``; ``base`` only adds its norm.

    Raises:
        ValueError: an input or the base holds NaN or infinity; tensor, file and count are named.
    """
    products = torch.zeros(len(inputs), len(inputs), dtype=torch.float64)
    for chunk in vectors(inputs, origin):
        products += (chunk @ chunk.T).cpu()
    base_square = 0.0
    for chunk in vectors([base], None) if base is not None else ():
        base_square += float(chunk[0] @ chunk[0])
    if not (products.isfinite().all() and math.isfinite(base_square)):
        refuse_non_finite(name, [*inputs, *(source for source in (origin, base) if source is not None)])
    angles = angles_of(products)
    _measure_small_angles(angles, products, inputs, origin)
    return Gram(products, angles, None if base is None else base_square**0.5)


def angles_of(products: Float64[Tensor, "n n"]) -> Float64[Tensor, "n n"]:
    """Return the angles of a Gram matrix by 2 atan2(|d|, |s|), d and s the difference and sum of unit vectors.

    NaN between a zero vector and any other.

    >>> angles_of(torch.tensor([[1.0, 2.0], [2.0, 16.0]], dtype=torch.float64)).rad2deg()
    tensor([[ 0.0000, 60.0000],
            [60.0000,  0.0000]], dtype=torch.float64)
    """
    norms = products.diagonal().sqrt()
    cosines = (products / norms.outer(norms)).clamp(-1, 1)
    angles = 2 * torch.atan2((1 - cosines).sqrt(), (1 + cosines).sqrt())
    return angles.fill_diagonal_(0)


def _measure_small_angles(
    angles: Float64[Tensor, "n n"],
    products: Float64[Tensor, "n n"],
    inputs: Sequence[TensorSource],
    origin: TensorSource | None,
) -> None:
    """Replace, in place, the angles too close to 0 or pi for the Gram by those of |u_i - u_j| or |u_i + u_j|."""
    norms = products.diagonal().sqrt()
    nearly = (angles.cos().abs() > 1 - NEARLY_PARALLEL).triu(1)
    pairs = [(int(i), int(j)) for i, j in nearly.nonzero()]
    if not pairs:
        return
    squares = dict.fromkeys(pairs, 0.0)
    for chunk in vectors(inputs, origin):
        units = chunk / norms[:, None].to(chunk.device)
        for i, j in pairs:
            gap = units[i] - units[j] if products[i, j] > 0 else units[i] + units[j]
            squares[i, j] += float(gap @ gap)
    for (i, j), square in squares.items():
        # |d|^2 + |s|^2 = 4 for unit vectors: the small one is summed, the other follows.
        small = 2 * math.atan2(math.sqrt(square), math.sqrt(max(0.0, 4 - square)))
        angles[i, j] = angles[j, i] = small if products[i, j] > 0 else math.pi - small


def vectors(inputs: Sequence[TensorSource], origin: TensorSource | None) -> Iterator[Float64[Tensor, "n m"]]:
    """Yield the inputs chunk by chunk as rows of a float64 matrix, less ``origin``.

    The matrix is reused: it holds the chunk until the next one is asked for.
    """
    scratch: Tensor | None = None
    for start, stop in row_ranges(inputs[0].shape):
        parts = [source.rows(start, stop) for source in inputs]
        size = parts[0].numel()
        if scratch is None:
            scratch = torch.empty(len(inputs), size, dtype=torch.float64, device=parts[0].device)
        chunk = scratch[:, :size]
        for row, part in zip(chunk, parts, strict=True):
            row.copy_(part.reshape(-1))
        if origin is not None:
            chunk -= origin.rows(start, stop).reshape(-1).to(torch.float64)
        yield chunk


def row_ranges(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) over the rows of a tensor, about ``CHUNK`` elements at a time, at least one row."""
    rows, columns = as_matrix(shape)
    step = max(1, CHUNK // max(1, columns))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def refuse_non_finite(name: str, sources: Sequence[TensorSource]) -> None:
    """Name the source whose NaN or infinite values spoiled the products of tensor ``name``, with their count."""
    for source in sources:
        count = sum(int((~source.rows(*bounds).isfinite()).sum()) for bounds in row_ranges(source.shape))
        if count:
            raise ValueError(
                f"{source.where}: tensor {name}: expected finite values, got {count} that are NaN or infinite; "
                "train or export that model again"
            )
    raise ValueError(f"tensor {name}: expected values whose squares fit into float64, got larger; rescale it")
