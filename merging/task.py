"""One tensor of a merge: where its inputs are, what it is merged with, and what has been found out about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from merging.adapter import FoldedTensor
from merging.rule import Rule, TensorRule
from merging.schedule import layer_of
from merging.sources import TensorSource


@dataclass(frozen=True)
class Task:
    """A tensor to be merged."""

    name: str
    inputs: Sequence[TensorSource]
    base: TensorSource | None
    """The base's own tensor, if a base is known."""
    rule: Rule
    told: TensorRule
    """The rule for this tensor."""
    dtype: torch.dtype
    """Of the result."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inputs[0].shape

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        return self.inputs[0].dtype.is_floating_point

    @property
    def origin(self) -> TensorSource | None:
        """What differences are taken from; None in weight space."""
        return self.base if self.rule.space == "task_vector" and self.is_float else None

    @property
    def sources(self) -> list[TensorSource]:
        """Everything that is read for it."""
        origin = self.origin
        return [*self.inputs, *([origin] if origin is not None else [])]

    @property
    def by_line(self) -> bool:
        """Whether each row, or each column, has coefficients of its own; a vector is one of either."""
        return self.rule.granularity in ("row", "column") and len(self.shape) > 1 and self.is_float

    @property
    def group(self) -> object:
        """Tensors with equal groups share their coefficients."""
        if self.rule.granularity == "model":
            return self.told
        layer = layer_of(self.name)
        return self.name if self.rule.granularity != "layer" or layer is None else (layer, self.told)

    @property
    def original(self) -> TensorSource:
        """The input to copy where all are equal: a plain file before an adapter, since its bytes need no rounding."""
        return next((source for source in self.inputs if not isinstance(source, FoldedTensor)), self.inputs[0])

    @property
    def keeps_equal(self) -> bool:
        """Whether equal inputs are their own merge."""
        told = self.told
        whole = math.isclose(math.fsum(told.weights), 1, rel_tol=1e-12) and told.options.scale == 1
        return not self.is_float or (self.rule.is_average and whole)


@dataclass(frozen=True)
class Measurement:
    """What pass 1 found out about one tensor."""

    products: Float64[Tensor, "n n"] | None
    """None for integer tensors."""
    angles: Float64[Tensor, "n n"] | None
    base_norm: float | None
    equal: bool
    """Whether all inputs hold the same values."""


@dataclass(frozen=True)
class Solved:
    """How pass 2 makes the tensor."""

    coefficients: Float64[Tensor, " n"] | None
    """None where the tensor is copied, where rows have their own, and for methods that look at single elements."""
    copied: TensorSource | None = None
    """The source whose values are the result."""
    notes: tuple[str, ...] = ()
