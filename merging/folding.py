"""Tensors of a base with an adapter folded in, computed a few rows at a time.

The rows come in float64 and products are formed in float64, so that an update keeps its own precision whatever
the base is stored in.

Dimensions: out and in, the sides of the weight; rows, those that are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from merging.adapter_file import Factors
from merging.sources import TensorSource


@dataclass(frozen=True)
class Update:
    """W + scale * B A; for DoRA the rows of that at the lengths that the magnitudes tell."""

    factors: Factors

    def apply(self, values: Float64[Tensor, "rows in"], start: int, stop: int) -> Float64[Tensor, "rows in"]:
        b, a = self.factors.b[start:stop].to(torch.float64), self.factors.a.to(torch.float64)
        updated = torch.addmm(values, b, a, alpha=self.factors.scale)
        if self.factors.magnitude is None:
            return updated
        return gains(updated, self.factors.magnitude[start:stop]).unsqueeze(1) * updated


@dataclass(frozen=True)
class Shift:
    """A bias that lora_bias adds to, seen as a column."""

    by: Float32[Tensor, " out"]
    scale: float

    def apply(self, values: Float64[Tensor, "rows 1"], start: int, stop: int) -> Float64[Tensor, "rows 1"]:
        return values + self.scale * self.by[start:stop].to(torch.float64).unsqueeze(1)


@dataclass(frozen=True)
class Replacement:
    """A tensor that was trained whole."""

    source: TensorSource

    def apply(self, values: Float64[Tensor, "rows columns"], start: int, stop: int) -> Float64[Tensor, "rows columns"]:
        return self.source.rows(start, stop).to(torch.float64)


Change = Update | Shift | Replacement
"""What an adapter does to a tensor or to a run of its rows: ``apply(values, start, stop)`` returns rows ``start`` to
``stop``, counted from the first that the change is made to, from the values that they had."""


@dataclass(frozen=True)
class Placed:
    """A change and the rows of the tensor that it is made to."""

    start: int
    stop: int
    change: Change


@dataclass(frozen=True)
class FoldedTensor:
    """A stored tensor with the changes of an adapter, made in their order.  Its rows come in float64."""

    weight: TensorSource
    changes: tuple[Placed, ...]
    where: str

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    def rows(self, start: int, stop: int) -> Float64[Tensor, "rows columns"]:
        values = self.weight.rows(start, stop).to(torch.float64)
        for placed in self.changes:
            first, last = max(start, placed.start), min(stop, placed.stop)
            if first < last:
                part = values[first - start : last - start]
                changed = placed.change.apply(part, first - placed.start, last - placed.start)
                values = torch.cat([values[: first - start], changed, values[last - start :]])
        return values

    def held(self) -> FoldedTensor:
        return replace(self, weight=self.weight.held())


def gains(
    updated: Float64[Tensor, "rows in"], magnitude: Float32[Tensor, " rows"] | Float64[Tensor, " rows"]
) -> Float64[Tensor, " rows"]:
    """Return DoRA's factor of each row: its magnitude by its norm.  It is 1 for a row of zeros, which has no direction.

    Reference: Liu et al. 2024, DoRA, arXiv:2402.09353, equation 5.

    >>> gains(torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64), torch.tensor([10.0, 1.0]))
    tensor([2., 1.], dtype=torch.float64)
    """
    norms = updated.square().sum(1).sqrt()
    return torch.where(norms > 0, magnitude.to(torch.float64) / norms, 1.0)


def fold(weight: TensorSource, changes: Sequence[Placed], where: str) -> FoldedTensor:
    """Return ``weight`` with further changes; one that was folded already keeps those it has."""
    if isinstance(weight, FoldedTensor):
        return replace(weight, changes=(*weight.changes, *changes))
    return FoldedTensor(weight, tuple(changes), where)
