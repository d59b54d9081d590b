"""One tensor of the merge: Gram matrix, coefficients, one weighted sum, cast once.

Dimensions: m elements of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from merging.adapter import FoldedTensor
from merging.gram import Gram, measure, row_ranges, vectors
from merging.rule import Rule
from merging.solution import Solution
from merging.sources import TensorSource


@dataclass(frozen=True)
class MergedTensor:
    """A tensor whose coefficients are settled and whose values are computed as they are asked for."""

    name: str
    inputs: Sequence[TensorSource]
    origin: TensorSource | None
    """What task vectors are taken from; None in weight space."""
    gram: Gram | None
    """None for integer tensors, which must be equal."""
    solution: Solution | None
    """None if all inputs are equal: the tensor is copied."""

    def chunks(self) -> Iterator[Shaped[Tensor, " m"]]:
        """Yield the values in order, in the dtype of the inputs.

        Raises:
            ValueError: a value does not fit into that dtype.
        """
        if self.solution is None:
            # A plain file before an adapter: its bytes are the tensor, without a rounding.
            source = next((source for source in self.inputs if not isinstance(source, FoldedTensor)), self.inputs[0])
            for start, stop in row_ranges(source.shape):
                yield self._cast(source.rows(start, stop).reshape(-1))
            return
        coefficients = self.solution.coefficients
        bounds = row_ranges(self.inputs[0].shape)
        for (start, stop), chunk in zip(bounds, vectors(self.inputs, self.origin), strict=True):
            values: Float64[Tensor, " m"] = coefficients.to(chunk.device) @ chunk
            if self.origin is not None:
                values += self.origin.rows(start, stop).reshape(-1)
            yield self._cast(values)

    def _cast(self, values: Shaped[Tensor, " m"]) -> Shaped[Tensor, " m"]:
        dtype = self.inputs[0].dtype
        if self.solution is None and values.dtype == dtype:
            return values
        # By way of float32, so that a 16-bit result is the rounded float32 result, bit for bit.
        result = (values if dtype == torch.float64 else values.to(torch.float32)).to(dtype)
        if not result.isfinite().all():
            largest = float(values.abs().max())
            raise ValueError(
                f"tensor {self.name}: expected values that fit into {dtype}, got {largest:.4g}; merge in fp32"
            )
        return result


def merge_tensor(
    name: str, inputs: Sequence[TensorSource], base: TensorSource | None, rule: Rule, memory: int
) -> MergedTensor:
    """Settle one tensor of the merge.

    The inputs are held in memory between the passes if they fit into ``memory`` bytes, and read again
    otherwise; the result is the same.

    Raises:
        ValueError: a value is not finite, integer tensors differ, or the inputs are antipodal and the rule
            does not say what then; the tensor is named.
    """
    origin = base if rule.space == "task_vector" else None
    for_norm = base if rule.norm == "base" and origin is None else None
    if (len(inputs) + 1) * inputs[0].dtype.itemsize * math.prod(inputs[0].shape) <= memory:
        inputs = [source.held() for source in inputs]
        origin = origin.held() if origin is not None else None
    if not inputs[0].dtype.is_floating_point:
        if not _equal(inputs):
            raise ValueError(
                f"tensor {name}: expected equal values in all inputs, as it is of {inputs[0].dtype}, got others; "
                "only floating-point weights can be merged"
            )
        return MergedTensor(name, inputs, None, None, None)
    gram = measure(name, inputs, origin, for_norm)
    if _equal(inputs):
        return MergedTensor(name, inputs, origin, gram, None)
    weights = torch.tensor(rule.weights, dtype=torch.float64)
    if math.prod(inputs[0].shape) == 1 and rule.method.takes_norm:
        # One number has a sign and no direction: two of them are parallel or antipodal, never at an angle.
        return MergedTensor(name, inputs, origin, gram, Solution(weights, note="single element: linear"))
    try:
        solution = rule.method.function(gram, weights, norm=rule.norm, antipodal=rule.antipodal)
    except ValueError as error:
        raise ValueError(f"tensor {name}: {error}") from None
    if solution.take_base and rule.base_index is not None:
        one_hot = torch.zeros_like(weights)
        one_hot[rule.base_index] = 1
        solution = replace(solution, coefficients=one_hot)
    return MergedTensor(name, inputs, origin, gram, solution)


def _equal(inputs: Sequence[TensorSource]) -> bool:
    """Say whether all inputs hold the same values; stops at the first chunk that differs."""
    first, *others = inputs
    for start, stop in row_ranges(first.shape):
        rows = first.rows(start, stop)
        if any(not bool((rows == other.rows(start, stop)).all()) for other in others):
            return False
    return True
