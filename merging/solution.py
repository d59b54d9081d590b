"""What a method decides: coefficients over the inputs for a batch of groups, and what there is to say about them.

Dimensions: g groups (tensors, rows, layers or one model), n inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Bool, Float64
from torch import Tensor


@dataclass(frozen=True)
class Solution:
    """The merged vectors are ``sum_i coefficients_i x_i`` (plus the base, in task-vector space)."""

    coefficients: Float64[Tensor, "g n"]
    notes: Mapping[str, Bool[Tensor, " g"]] = field(default_factory=dict)
    """Policies that were applied, each with the groups it was applied to; for the report."""
    take_base: Bool[Tensor, " g"] | None = None
    """Groups whose coefficients are void: the base's own values are the result (antipodal policy ``base``)."""
    refused: Bool[Tensor, " g"] | None = None
    """Groups for which there is no result; the engine raises ``reason`` with the name of the tensor."""
    reason: str = ""
    """Why: expected, got, next step."""
