"""Between the passes: coefficients for all tensors of a window at once.

Tensors that share a group (a layer, the whole model) are one vector: their Gram matrices add up.

Dimensions: g groups, n inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float64
from torch import Tensor

from merging.gram import Gram, angles_of
from merging.options import Options
from merging.rule import Rule
from merging.solution import Solution
from merging.task import Measurement, Solved, Task

SINGLE_ELEMENT = "single element: linear"


def solve(tasks: Sequence[Task], measured: Sequence[Measurement]) -> list[Solved]:
    """Return how each tensor is made.

    Raises:
        ValueError: the inputs of a tensor have no mean and the rule does not say what then; it is named.
    """
    solved: dict[int, Solved] = {}
    members: dict[object, list[int]] = {}
    for index, (task, found) in enumerate(zip(tasks, measured, strict=True)):
        settled = _without_solving(task, found)
        if settled is not None:
            solved[index] = settled
        if task.is_float and task.rule.method.kind == "coefficients" and not task.by_line:
            members.setdefault(task.group, []).append(index)
    # A group whose members are all settled already needs no coefficients.
    groups = [group for group in members.values() if not all(index in solved for index in group)]
    batches: dict[Options, list[list[int]]] = {}
    for group in groups:
        batches.setdefault(tasks[group[0]].told.options, []).append(group)
    for batch in batches.values():
        for group, one in zip(batch, _solve_batch(batch, tasks, measured), strict=True):
            for index in group:
                solved.setdefault(index, one)
    return [solved.get(index, Solved(None)) for index in range(len(tasks))]


def solution_of(rule: Rule, gram: Gram, weights: Float64[Tensor, "g n"], options: Options) -> Solution:
    """Call the method; where the base is the result, its own coefficients take the place of void ones."""
    method = rule.method.compat_function if rule.compat else rule.method.function
    solution: Solution = method(gram, weights, options)
    if solution.take_base is not None:
        base = torch.zeros_like(weights)
        if rule.base_index is not None:
            base[:, rule.base_index] = 1
        chosen = torch.where(solution.take_base.unsqueeze(-1), base, solution.coefficients)
        solution = replace(solution, coefficients=chosen)
    return solution


def _without_solving(task: Task, found: Measurement) -> Solved | None:
    """Return what needs no coefficients: copies, and tensors of one number."""
    if found.equal and task.keeps_equal:
        return Solved(None, copied=task.original)
    if not task.is_float:
        return Solved(None, copied=task.original)
    still = task.origin is not None and found.products is not None and not found.products.any()
    if still and task.told.options.norm != "base":
        # No input differs from the base, so nothing moves.
        return Solved(None, copied=task.origin)
    takes_norm = "norm" in task.rule.method.takes and task.rule.granularity in ("tensor", "row", "column")
    if task.elements == 1 and takes_norm and len(task.inputs) > 1 and not task.rule.compat:
        # One number has a sign and no direction: two of them are parallel or antipodal, never at an angle.
        return Solved(torch.tensor(task.told.weights, dtype=torch.float64) * _scale(task), notes=(SINGLE_ELEMENT,))
    return None


def _scale(task: Task) -> float:
    return task.told.options.scale if "scale" in task.rule.method.takes else 1.0


def _solve_batch(
    batch: Sequence[Sequence[int]], tasks: Sequence[Task], measured: Sequence[Measurement]
) -> list[Solved]:
    """Solve groups with equal options together."""
    first = tasks[batch[0][0]]
    options = first.told.options
    products = torch.stack([_total(measured[index].products for index in group) for group in batch])
    angles = angles_of(products)
    for row, group in enumerate(batch):
        own = measured[group[0]].angles
        if len(group) == 1 and own is not None:
            angles[row] = own
    norms = None
    if options.norm == "base":
        squares = [math.fsum((measured[index].base_norm or 0.0) ** 2 for index in group) for group in batch]
        norms = torch.tensor(squares, dtype=torch.float64).sqrt()
    weights = torch.tensor([tasks[group[0]].told.weights for group in batch], dtype=torch.float64)
    solution = solution_of(first.rule, Gram(products, angles, norms), weights, options)
    refuse(solution, [tasks[group[0]].name for group in batch])
    return [
        Solved(coefficients, notes=_notes(solution.notes, row))
        for row, coefficients in enumerate(solution.coefficients)
    ]


def refuse(solution: Solution, names: Sequence[str]) -> None:
    """Raise ValueError with the name of the first group that has no result, if one has none."""
    if solution.refused is not None and bool(solution.refused.any()):
        name = names[int(solution.refused.nonzero()[0, 0])]
        raise ValueError(f"tensor {name}: {solution.reason}")


def _total(products: Iterable[Tensor | None]) -> Float64[Tensor, "n n"]:
    first, *others = [one for one in products if one is not None]
    return sum(others, first)


def _notes(masks: Mapping[str, Tensor], row: int) -> tuple[str, ...]:
    return tuple(note for note, mask in masks.items() if bool(mask[row]))
