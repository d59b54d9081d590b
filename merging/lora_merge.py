"""The merge of one part of some adapters: what was measured, what was decided, what comes out.

Dimensions: n inputs; out and in, the sides of a module's weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from merging.adapter_file import Adapter, Factors
from merging.adapter_parts import Part, refuse_non_finite
from merging.dora import merge_dora
from merging.gram import Gram, add_products, angles_of, mirrored, pairs_to_measure_again, small_angle
from merging.low_rank import concatenated, weighted_columns
from merging.options import Options
from merging.pieces import row_ranges
from merging.recompression import compress_dense, compress_product
from merging.rule import Rule, TensorRule
from merging.solving import SINGLE_ELEMENT, refuse, solution_of


@dataclass(frozen=True, eq=False)
class Look:
    """What a part looks like across the inputs, and what it is told."""

    part: Part
    told: TensorRule
    products: Float64[Tensor, "n n"]
    angles: Float64[Tensor, "n n"]

    def length(self, coefficients: Float64[Tensor, " n"]) -> float:
        """Norm of the vector with these coefficients over the inputs."""
        return math.sqrt(max(0.0, float(coefficients @ self.products @ coefficients)))

    @property
    def weights(self) -> Float64[Tensor, " n"]:
        return torch.tensor(self.told.weights, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Decision:
    """Coefficients over the inputs; None for a method that looks at single elements."""

    coefficients: Float64[Tensor, " n"] | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Merged:
    """The result of a part: factors of a module, or the values of a vector or a tensor."""

    look: Look
    decision: Decision
    factors: Factors | None
    values: Float32[Tensor, "*shape"] | None
    norm: float
    """Of the merged difference from the base."""
    lost: float = 0.0
    """Norm of what recompression lost."""


def look_at(part: Part, rule: Rule, adapters: Sequence[Adapter]) -> Look:
    """Measure a part.

    Raises:
        ValueError: a value is not finite, or a parameter does not fit this tensor; it is named.
    """
    n = len(adapters)
    vectors = part.vectors()
    upper = torch.zeros(n, n, dtype=torch.float64)
    for chunk in vectors():
        add_products(chunk, upper)
    products = mirrored(upper)
    if not bool(products.isfinite().all()):
        refuse_non_finite(part, adapters)
    angles = angles_of(products.unsqueeze(0))[0]
    norms = products.diagonal().sqrt()
    for i, j in pairs_to_measure_again(products):
        opposite = bool(products[i, j] < 0)
        square = sum(
            float((chunk[i] / norms[i] + (1 if opposite else -1) * chunk[j] / norms[j]).square().sum())
            for chunk in vectors()
        )
        angles[i, j] = angles[j, i] = small_angle(min(square, 4.0), opposite=opposite)
    return Look(part, rule.at(part.name), products, angles)


def decide(looks: Sequence[Look], rule: Rule) -> list[Decision]:
    """Return the coefficients of all parts; those with equal options are solved together.

    Raises:
        ValueError: the inputs of a part have no mean and the rule does not say what then; it is named.
    """
    if rule.method.kind == "elements":
        return [Decision(None)] * len(looks)
    decided: dict[int, Decision] = {}
    batches: dict[Options, list[int]] = {}
    for index, look in enumerate(looks):
        if not bool(look.products.any()):
            decided[index] = Decision(torch.zeros_like(look.weights))  # nothing moves
        elif look.part.elements == 1 and "norm" in rule.method.takes and rule.inputs > 1:
            scale = look.told.options.scale if "scale" in rule.method.takes else 1.0
            decided[index] = Decision(look.weights * scale, (SINGLE_ELEMENT,))
        else:
            batches.setdefault(look.told.options, []).append(index)
    for options, batch in batches.items():
        gram = Gram(
            torch.stack([looks[index].products for index in batch]),
            torch.stack([looks[index].angles for index in batch]),
        )
        solution = solution_of(rule, gram, torch.stack([looks[index].weights for index in batch]), options)
        refuse(solution, [looks[index].part.name for index in batch])
        for row, index in enumerate(batch):
            notes = tuple(note for note, where in solution.notes.items() if bool(where[row]))
            decided[index] = Decision(solution.coefficients[row], notes)
    return [decided[index] for index in range(len(looks))]


def merge_part(look: Look, decision: Decision, rule: Rule, *, rank: int | None, dora: bool) -> Merged:
    """Merge one part.

    Args:
        look: what was measured.
        decision: its coefficients.
        rule: of the merge.
        rank: highest rank of a module's result; None for an exact one, or for the highest of the inputs' ranks
            where the method looks at single elements and nothing exact of low rank exists.
        dora: whether the result is written with magnitudes.

    Raises:
        ValueError: a value does not fit into float32; the tensor is named.
    """
    part = look.part
    if decision.coefficients is None:
        merged = _merge_elements(look, decision, rule, rank)
    elif part.kind == "module":
        merged = _merge_module(look, decision, decision.coefficients, rank, dora)
    else:
        merged = _merge_vector(look, decision, decision.coefficients)
    factors = merged.factors
    results = [merged.values] if factors is None else [factors.a, factors.b, factors.magnitude]
    if not all(bool(each.isfinite().all()) for each in results if each is not None):
        raise ValueError(f"tensor {part.name}: expected values that fit into float32, got larger; rescale the inputs")
    return merged


def _merge_module(
    look: Look, decision: Decision, coefficients: Float64[Tensor, " n"], rank: int | None, dora: bool
) -> Merged:
    part, norm = look.part, look.length(coefficients)
    rows, columns = part.shape
    if dora:
        assert part.weight is not None, "the base was not asked for"
        try:
            factors, lost = merge_dora(part.weight, (rows, columns), part.updates, coefficients, rank)
        except ValueError as error:
            raise ValueError(f"tensor {part.name}: {error}") from None
        return Merged(look, decision, factors, None, norm, lost)
    exact = concatenated(part.updates, coefficients) or _nothing(rows, columns)
    if rank is None or exact.rank <= rank:
        return Merged(look, decision, exact, None, norm)
    pair = weighted_columns(part.updates, [c.expand(1) for c in coefficients])
    assert pair is not None, "an update of rank 1 or more"
    b, a, lost = compress_product(*pair, rank)
    return Merged(look, decision, Factors(a, b, 1.0), None, norm, lost)


def _merge_vector(look: Look, decision: Decision, coefficients: Float64[Tensor, " n"]) -> Merged:
    """Sum the differences; a tensor that was trained whole is stored with the base's values in it."""
    part = look.part
    pieces = []
    for start, stop in row_ranges(part.shape):
        piece = torch.tensordot(coefficients, part.deltas(start, stop), dims=1)
        pieces.append((piece if part.weight is None else piece + part.weight(start, stop)).float())
    values = torch.cat(pieces).reshape(part.shape)
    return Merged(look, decision, None, values, look.length(coefficients))


def _merge_elements(look: Look, decision: Decision, rule: Rule, rank: int | None) -> Merged:
    """Merge the dense differences of one tensor, and bring those of a module back to factors."""
    part = look.part
    combine = rule.method.function(part.walk, look.weights, look.told.options, part.name)
    pieces = [combine(index, chunk) for index, chunk in enumerate(part.walk())]
    dense = torch.cat(pieces) if len(part.shape) > 1 else torch.cat(pieces, dim=1).mT
    norm = float(dense.double().square().sum().sqrt())
    if part.kind == "module":
        highest = max(update.rank for update in part.updates if update is not None)
        b, a, lost = compress_dense(dense, highest if rank is None else rank)
        return Merged(look, decision, Factors(a, b, 1.0), None, norm, lost)
    if part.weight is not None:
        for start, stop in row_ranges(part.shape):
            dense[start:stop] = (dense[start:stop] + part.weight(start, stop)).float()
    return Merged(look, decision, None, dense.reshape(part.shape), norm)


def _nothing(rows: int, columns: int) -> Factors:
    """PEFT has no rank 0: an update of nothing is one of rank 1."""
    return Factors(torch.zeros(1, columns), torch.zeros(rows, 1), 1.0)
