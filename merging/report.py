"""merge.json: what was merged, how, and how far the result lies from the plain soup.

Distances come from the Gram matrices, without another pass: for coefficients c and s over the same vectors,
|result - soup|^2 = (c - s)' G (c - s).  Only where there are no coefficients (rows of their own, single
elements) they are summed while the values are made.

Dimensions: n inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from merging.gram import angles_of
from merging.plan import MergePlan
from merging.rule import Rule
from merging.sources import Checkpoint
from merging.task import Task
from merging.windows import Outcome
from storage.manifest import fingerprint_of


def merge_report(plan: MergePlan, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the content of merge.json.  Angles are in degrees, for the pairs (0, 1), (0, 2), ..., (1, 2), ...

    An angle that is undefined, because a vector is zero, is null.
    """
    rule = plan.rule
    return {
        "format": 1,
        "method": rule.method.name,
        "reference": rule.method.reference,
        "compat": "mergekit" if rule.compat else None,
        "space": rule.space,
        "granularity": rule.granularity,
        "dtype": plan.dtype,
        "parameters": parameters_of(rule),
        "base": None if plan.base is None else _described(plan, plan.base),
        "inputs": [_described(plan, model) for model in plan.inputs],
        "summary": summary_of(rule, outcomes) | {"notes": _notes(plan, outcomes)},
        "tensors": {outcome.task.name: _row(outcome) for outcome in outcomes},
    }


def parameters_of(rule: Rule) -> dict[str, Any]:
    """Return every parameter that had a say, as numbers or as the schedules they were given as."""
    row = rule.method
    parameters: dict[str, Any] = {
        "norm": rule.norm if "norm" in row.takes else None,
        "antipodal": rule.antipodal,
        "extrapolate": rule.extrapolate,
        "seed": rule.seed if row.kind == "elements" else None,
    }
    if not rule.is_constant:
        return {"weights": None, "t": None} | parameters | rule.settings.plain()
    told = rule.at("")
    asked = rule.settings.plain()
    t = asked.get("t", 0.5 if "t" in row.takes and "weights" not in row.takes else None)
    options = {key: getattr(told.options, key) for key in sorted(row.takes - {"t", "weights", "norm"})}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
    return {"weights": list(told.weights), "t": t} | plain | parameters


def summary_of(rule: Rule, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Angles over all tensors and distances over the whole model, relative to the soup in the merge's space."""
    n = rule.inputs
    soup = torch.full((n,), 1 / n, dtype=torch.float64)
    measured = [outcome for outcome in outcomes if outcome.measured.products is not None]
    angles = [angle for outcome in measured for angle in _pairs(outcome.measured.angles) if angle is not None]
    products = sum((_products(outcome) for outcome in measured), torch.zeros(n, n, dtype=torch.float64))
    length = _length(products, soup)
    to_soup = math.sqrt(sum(_square_to(outcome, soup, "soup") for outcome in measured))
    to_linear = math.sqrt(sum(_square_to(outcome, _weights(outcome.task), "linear") for outcome in measured))
    return {
        "largest_angle_degrees": max(angles, default=None),
        "mean_angle_degrees": sum(angles) / len(angles) if angles else None,
        "model_angles_degrees": _degrees(angles_of(products.unsqueeze(0))[0]),
        "soup_norm": length,
        "distance_to_soup": to_soup / length if length else None,
        "distance_to_linear": to_linear / length if length else None,
        "distances_relative_to": "the soup's task vector" if rule.space == "task_vector" else "the soup",
        "dominance": _dominance(measured),
        "tensors": len(outcomes),
        "copied_unchanged": sum(outcome.solved.copied is not None for outcome in outcomes),
        "zero_inputs": sum(bool((_products(outcome).diagonal() == 0).any()) for outcome in measured),
    }


def _notes(plan: MergePlan, outcomes: Sequence[Outcome]) -> list[str]:
    return sorted({note for outcome in outcomes for note in outcome.solved.notes}) + list(plan.notes)


def _described(plan: MergePlan, model: Checkpoint) -> dict[str, Any]:
    described: dict[str, Any] = {
        "path": model.path,
        "kind": model.kind,
        "sha256": plan.desk.hashes_of(model.path),
    }
    if model.base is not None:
        base_hashes = plan.desk.hashes_of(Path(model.base.folder))
        described["base"] = {"path": model.base.path, "fingerprint": fingerprint_of(base_hashes)}
    return described


def _dominance(measured: Sequence[Outcome]) -> list[float] | None:
    """Share of the merged vector along each input, sum_tensors c_i (G c)_i / c' G c; the shares sum to 1.

    None where the result is no weighted sum of the inputs, or is zero.
    """
    total: Tensor | None = None
    for outcome in measured:
        coefficients = _coefficients(outcome)
        if coefficients is None:
            return None
        along = coefficients * (_products(outcome) @ coefficients)
        total = along if total is None else total + along
    if total is None or not float(total.sum()) > 0:
        return None
    return (total / total.sum()).tolist()


def _coefficients(outcome: Outcome) -> Float64[Tensor, " n"] | None:
    """Coefficients of a tensor; those of a copy are the weights, since all inputs are equal or nothing moves."""
    return _weights(outcome.task) if outcome.solved.copied is not None else outcome.solved.coefficients


def _weights(task: Task) -> Float64[Tensor, " n"]:
    return torch.tensor(task.told.weights, dtype=torch.float64)


def _square_to(outcome: Outcome, other: Float64[Tensor, " n"], name: str) -> float:
    if outcome.solved.copied is not None:
        return 0.0
    if outcome.solved.coefficients is None:
        return outcome.squares.get(name, 0.0)
    return _length(_products(outcome), outcome.solved.coefficients - other) ** 2


def _products(outcome: Outcome) -> Float64[Tensor, "n n"]:
    assert outcome.measured.products is not None
    return outcome.measured.products


def _length(products: Float64[Tensor, "n n"], coefficients: Float64[Tensor, " n"]) -> float:
    return math.sqrt(max(0.0, float(coefficients @ products @ coefficients)))


def _row(outcome: Outcome) -> dict[str, Any]:
    solved, measured = outcome.solved, outcome.measured
    row: dict[str, Any] = {"state": "merged" if solved.copied is None else "unchanged"}
    if measured.products is not None:
        row["norms"] = measured.products.diagonal().sqrt().tolist()
        row["angles_degrees"] = _pairs(measured.angles)
    if solved.coefficients is not None:
        row["coefficients"] = solved.coefficients.tolist()
    return row | ({"note": ", ".join(solved.notes)} if solved.notes else {})


def _pairs(angles: Float64[Tensor, "n n"] | None) -> list[float | None]:
    return [] if angles is None else _degrees(angles)


def _degrees(angles: Float64[Tensor, "n n"]) -> list[float | None]:
    rows, columns = torch.triu_indices(len(angles), len(angles), offset=1)
    values = torch.rad2deg(angles[rows, columns]).tolist()
    return [value if math.isfinite(value) else None for value in values]
