"""merge.json: what was merged, how, and how far the result lies from the plain soup.

Distances come from the Gram matrices, without another pass: for coefficients c and s over the same vectors,
|result - soup|^2 = (c - s)' G (c - s).

Dimensions: n inputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from merging.gram import Gram, angles_of
from merging.group import MergedTensor
from merging.plan import MergePlan
from merging.sources import Checkpoint
from storage.manifest import fingerprint_of


@dataclass(frozen=True)
class TensorRecord:
    """What the report keeps of a merged tensor: N x N numbers, no weights."""

    gram: Gram | None
    coefficients: Float64[Tensor, " n"] | None
    note: str | None

    @classmethod
    def of(cls, merged: MergedTensor) -> TensorRecord:
        if merged.solution is None:
            return cls(merged.gram, None, None)
        return cls(merged.gram, merged.solution.coefficients, merged.solution.note)


def merge_report(plan: MergePlan, records: Mapping[str, TensorRecord]) -> dict[str, Any]:
    """Return the content of merge.json.  Angles are in degrees, for the pairs (0, 1), (0, 2), ..., (1, 2), ...

    An angle that is undefined, because a vector is zero, is null.
    """
    rule = plan.rule
    return {
        "format": 1,
        "method": rule.method.name,
        "reference": rule.method.reference,
        "space": rule.space,
        "parameters": {
            "weights": list(rule.weights),
            "t": rule.t,
            "norm": rule.norm if rule.method.takes_norm else None,
            "antipodal": rule.antipodal,
        },
        "base": None if plan.base is None else _described(plan, plan.base),
        "inputs": [_described(plan, model) for model in plan.inputs],
        "summary": _summary(plan, records),
        "tensors": {name: _row(record) for name, record in records.items()},
    }


def _described(plan: MergePlan, model: Checkpoint) -> dict[str, Any]:
    hashes = plan.hashes[Path(model.path).resolve()]
    described: dict[str, Any] = {"path": model.path, "kind": model.kind, "sha256": hashes}
    if model.base is not None:
        base_hashes = plan.hashes[model.base.folder.resolve()]
        described["base"] = {"path": model.base.path, "fingerprint": fingerprint_of(base_hashes)}
    return described


def _summary(plan: MergePlan, records: Mapping[str, TensorRecord]) -> dict[str, Any]:
    """Angles over all tensors and distances over the whole model, relative to the soup in the merge's space."""
    measured = [record for record in records.values() if record.gram is not None]
    n = len(plan.inputs)
    soup = torch.full((n,), 1 / n, dtype=torch.float64)
    weights = torch.tensor(plan.rule.weights, dtype=torch.float64)
    angles = [angle for record in measured for angle in _pairs(record.gram) if angle is not None]
    products = sum((record.gram.products for record in measured if record.gram), torch.zeros(n, n, dtype=torch.float64))
    length = math.sqrt(sum(record.gram.length(soup) ** 2 for record in measured if record.gram))
    return {
        "largest_angle_degrees": max(angles, default=None),
        "mean_angle_degrees": sum(angles) / len(angles) if angles else None,
        "model_angles_degrees": _degrees(angles_of(products)),
        "soup_norm": length,
        "distance_to_soup": _distance(measured, soup) / length if length else None,
        "distance_to_linear": _distance(measured, weights) / length if length else None,
        "distances_relative_to": "the soup's task vector" if plan.rule.space == "task_vector" else "the soup",
        "tensors": len(records),
        "copied_unchanged": sum(record.coefficients is None for record in records.values()),
        "zero_inputs": sum(bool((record.gram.norms == 0).any()) for record in measured if record.gram),
        "notes": sorted({record.note for record in measured if record.note}),
    }


def _distance(records: list[TensorRecord], other: Float64[Tensor, " n"]) -> float:
    squares = 0.0
    for record in records:
        if record.coefficients is not None and record.gram is not None:
            squares += record.gram.length(record.coefficients - other) ** 2
    return math.sqrt(squares)


def _row(record: TensorRecord) -> dict[str, Any]:
    row: dict[str, Any] = {"state": "unchanged" if record.coefficients is None else "merged"}
    if record.gram is not None:
        row["norms"] = record.gram.norms.tolist()
        row["angles_degrees"] = _pairs(record.gram)
    if record.coefficients is not None:
        row["coefficients"] = record.coefficients.tolist()
    return row | ({"note": record.note} if record.note else {})


def _pairs(gram: Gram | None) -> list[float | None]:
    return [] if gram is None else _degrees(gram.angles)


def _degrees(angles: Float64[Tensor, "n n"]) -> list[float | None]:
    rows, columns = torch.triu_indices(len(angles), len(angles), offset=1)
    values = torch.rad2deg(angles[rows, columns]).tolist()
    return [value if math.isfinite(value) else None for value in values]
