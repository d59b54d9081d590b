"""merge.json of a merge of adapters: what was merged, how, what it looks like and what recompression lost.

Its fields are those of a merge of whole models; a row adds ranks and the relative error of recompression.

Dimensions: n inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from merging.adapter_file import Adapter
from merging.gram import angles_of
from merging.lora_merge import Look, Merged
from merging.report import parameters_of
from merging.rule import Rule


def lora_report(
    rule: Rule,
    adapters: Sequence[Adapter],
    merged: Sequence[Merged],
    *,
    hashes: Sequence[dict[str, str]],
    base: dict[str, Any] | None,
    rank: int | None,
) -> dict[str, Any]:
    """Return the content of merge.json.  Angles are in degrees, for the pairs (0, 1), (0, 2), ..., (1, 2), ...

    What is undefined (the angle of a zero vector, the relative error of a zero merge) is null.
    """
    return {
        "format": 1,
        "method": rule.method.name,
        "reference": rule.method.reference,
        "compat": None,
        "space": "task_vector",
        "granularity": "tensor",
        "parameters": parameters_of(rule) | {"rank": rank},
        "base": base,
        "inputs": [
            {"path": adapter.path, "kind": "adapter", "sha256": found, "rank": _highest_rank(adapter)}
            for adapter, found in zip(adapters, hashes, strict=True)
        ],
        "summary": _summary(merged, rule.inputs),
        "tensors": {each.look.part.name: _row(each) for each in merged},
    }


def _highest_rank(adapter: Adapter) -> int:
    return max((factors.rank for factors in adapter.factors.values()), default=0)


def _summary(merged: Sequence[Merged], n: int) -> dict[str, Any]:
    """Angles over all tensors, and distances over the whole adapter relative to the soup's difference from the base."""
    soup = torch.full((n,), 1 / n, dtype=torch.float64)
    angles = [angle for each in merged for angle in _pairs(each.look.angles) if angle is not None]
    products = sum((each.look.products for each in merged), torch.zeros(n, n, dtype=torch.float64))
    length = _root(merged, lambda each: each.look.length(soup))
    decided = all(each.decision.coefficients is not None for each in merged)
    to_soup = _root(merged, lambda each: _distance(each, soup)) if decided else None
    to_linear = _root(merged, lambda each: _distance(each, each.look.weights)) if decided else None
    norm, lost = _root(merged, lambda each: each.norm), _root(merged, lambda each: each.lost)
    return {
        "largest_angle_degrees": max(angles, default=None),
        "mean_angle_degrees": sum(angles) / len(angles) if angles else None,
        "model_angles_degrees": _pairs(angles_of(products.unsqueeze(0))[0]),
        "soup_norm": length,
        "distance_to_soup": to_soup / length if length and to_soup is not None else None,
        "distance_to_linear": to_linear / length if length and to_linear is not None else None,
        "distances_relative_to": "the soup's task vector",
        "dominance": _dominance(merged) if decided else None,
        "rank": max((each.factors.rank for each in merged if each.factors is not None), default=0),
        "recompression_error": lost / norm if norm else None,
        "tensors": len(merged),
        "notes": sorted({note for each in merged for note in each.decision.notes}),
    }


def _row(merged: Merged) -> dict[str, Any]:
    look, coefficients = merged.look, merged.decision.coefficients
    row: dict[str, Any] = {
        "state": "merged",
        "norms": look.products.diagonal().sqrt().tolist(),
        "angles_degrees": _pairs(look.angles),
    }
    if coefficients is not None:
        row["coefficients"] = coefficients.tolist()
        row["dominance"] = _shares(_along(look, coefficients))
    if merged.factors is not None:
        row["rank_in"] = [0 if update is None else update.rank for update in look.part.updates]
        row["rank_out"] = merged.factors.rank
        row["recompression_error"] = merged.lost / merged.norm if merged.norm else None
    return row | ({"notes": list(merged.decision.notes)} if merged.decision.notes else {})


def _dominance(merged: Sequence[Merged]) -> list[float] | None:
    """Share of the merged difference along each input, over all tensors; the shares sum to 1."""
    along = [_along(each.look, c) for each in merged if (c := each.decision.coefficients) is not None]
    return _shares(torch.stack(along).sum(0))


def _along(look: Look, coefficients: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
    return coefficients * (look.products @ coefficients)


def _shares(along: Float64[Tensor, " n"]) -> list[float] | None:
    total = float(along.sum())
    return (along / total).tolist() if total > 0 else None


def _distance(merged: Merged, other: Float64[Tensor, " n"]) -> float:
    assert merged.decision.coefficients is not None
    return merged.look.length(merged.decision.coefficients - other)


def _root(merged: Sequence[Merged], length: Callable[[Merged], float]) -> float:
    return math.sqrt(math.fsum(length(each) ** 2 for each in merged))


def _pairs(angles: Float64[Tensor, "n n"]) -> list[float | None]:
    rows, columns = torch.triu_indices(len(angles), len(angles), offset=1)
    values = torch.rad2deg(angles[rows, columns]).tolist()
    return [value if math.isfinite(value) else None for value in values]
