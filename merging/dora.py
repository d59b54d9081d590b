"""The exact merge of DoRA adapters, as a DoRA adapter.

An input makes of the base's weight W0 the weight g_i (W0 + s_i B_i A_i), row by row, with g_i = m_i / |W0 + s_i B_i A_i|;
a plain LoRA input has g_i = 1.  With coefficients c over the differences from W0 and s = 1 - sum c_i + sum c_i g_i

    W0 + sum_i c_i (g_i (W0 + s_i B_i A_i) - W0) = s (W0 + B' A'),    B' = [diag(c_i g_i s_i / s) B_i], A' = [A_i],

which is again a DoRA update, with the magnitudes m' = s |W0 + B' A'|.  Reference: Liu et al. 2024, DoRA,
arXiv:2402.09353; the merge is ours.

Dimensions: n inputs; out and in, the sides of the weight; rows, some of out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from merging.adapter_file import Factors
from merging.folding import Update, gains
from merging.low_rank import weighted_columns
from merging.pieces import row_ranges
from merging.recompression import compress_product

SMALLEST = 1e-6
"""Smallest |s| at which a merge is written as DoRA: B' holds 1 / s."""

Rows = Callable[[int, int], Float64[Tensor, "rows in"]]
"""Rows ``start`` to ``stop`` of the base's weight."""


def merge_dora(
    weight: Rows,
    shape: tuple[int, int],
    updates: Sequence[Factors | None],
    coefficients: Float64[Tensor, " n"],
    rank: int | None,
) -> tuple[Factors, float]:
    """Return the merged update with its magnitudes, and the norm of what recompression to ``rank`` loses (0 for None).

    Raises:
        ValueError: the coefficients cancel the base's own weight in a row, so that no DoRA update is equal to the
            merge; expected / got / next step, without a name.
    """
    each = _gains(weight, shape, updates)
    s = 1 - coefficients.sum() + coefficients @ each
    if bool((s.abs() < SMALLEST).any()):
        raise ValueError(
            f"expected coefficients under which the base's weight stays in every row, got {coefficients.tolist()}; "
            "choose smaller weights"
        )
    parts = weighted_columns(updates, list(coefficients.unsqueeze(1) * each))
    if parts is None:
        parts = torch.zeros(shape[0], 1, dtype=torch.float64), torch.zeros(1, shape[1], dtype=torch.float64)
    b, a = parts
    error = 0.0
    if rank is not None and b.shape[1] > rank:
        # The rows as they will count: what is cut off is measured in the weight, not before the factor s.
        small, short, error = compress_product(b, a, rank)
        b, a = small.double(), short.double()
    merged = Factors(a.float(), (b / s.unsqueeze(1)).float(), 1.0)
    norms = [
        Update(merged).apply(weight(start, stop), start, stop).square().sum(1).sqrt()
        for start, stop in row_ranges(shape)
    ]
    magnitude = (s * torch.cat(norms)).float()
    return Factors(merged.a, merged.b, 1.0, magnitude=magnitude), error


def _gains(weight: Rows, shape: tuple[int, int], updates: Sequence[Factors | None]) -> Float64[Tensor, "n out"]:
    """Return g for every input and row."""
    result = torch.ones(len(updates), shape[0], dtype=torch.float64)
    for start, stop in row_ranges(shape):
        values = weight(start, stop)
        for row, update in zip(result, updates, strict=True):
            if update is not None and update.magnitude is not None:
                plain = Factors(update.a, update.b, update.scale)
                row[start:stop] = gains(Update(plain).apply(values, start, stop), update.magnitude[start:stop])
    return result
