"""What a method decides for one tensor: coefficients over the inputs, and what there is to say about them.

Dimensions: n inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float64
from torch import Tensor


@dataclass(frozen=True)
class Solution:
    """The merged tensor is ``sum_i coefficients_i x_i`` (plus the base, in task-vector space)."""

    coefficients: Float64[Tensor, " n"]
    note: str | None = None
    """A policy that was applied, for the report; None in the ordinary case."""
    take_base: bool = False
    """The coefficients are void: the base's own tensor is the result (antipodal policy ``base``)."""
