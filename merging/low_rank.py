"""Low-rank updates of one module, seen in a small space that holds all of them.

The inputs' updates are s_i B_i A_i.  QR of all B side by side, and of all A, gives orthonormal frames in which every
update is a small matrix, its core; inner products, sums and singular values of the updates are those of the cores.
It is the identity <B_i A_i, B_j A_j> = sum((B_i' B_j) * (A_i A_j')) in a form that does not cancel where the
columns of a factor nearly do.

Dimensions: n inputs; out and in, the sides of the weight; p and q, the sides of the cores; r, a rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from merging.adapter_file import Factors


@dataclass(frozen=True)
class Span:
    """Updates over shared frames: the i-th is ``left @ cores[i] @ right.T``."""

    left: Float64[Tensor, "out p"]
    """Orthonormal columns."""
    right: Float64[Tensor, "in q"]
    """Orthonormal columns."""
    cores: Float64[Tensor, "n p q"]


def span_of(updates: Sequence[Factors | None]) -> Span:
    """Return the span of the updates s_i B_i A_i; None stands for no update.  At least one must be there.

    >>> twice = Factors(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0], [1.0]]), scale=2.0)
    >>> float(span_of([twice, None]).cores.norm())
    10.0
    """
    there = [update for update in updates if update is not None]
    left, b = torch.linalg.qr(torch.cat([update.b for update in there], dim=1).to(torch.float64))
    right, a = torch.linalg.qr(torch.cat([update.a for update in there]).to(torch.float64).mT)
    cores = torch.zeros(len(updates), len(b), len(a), dtype=torch.float64)
    start = 0
    for core, update in zip(cores, updates, strict=True):
        if update is not None:
            columns = slice(start, start + update.rank)
            torch.mm(b[:, columns], a[:, columns].mT, out=core)
            core *= update.scale
            start += update.rank
    return Span(left, right, cores)


def concatenated(updates: Sequence[Factors | None], coefficients: Float64[Tensor, " n"]) -> Factors | None:
    """Return ``sum_i c_i s_i B_i A_i`` exactly, at scale 1: the factors side by side, the rank the sum of the ranks.

    Inputs with coefficient zero drop out, and those that share A are one, so that merging an adapter with itself
    does not double its rank.  None if nothing is left.

    >>> one = Factors(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0], [1.0]]), scale=2.0)
    >>> merged = concatenated([one, one], torch.tensor([0.5, 0.5], dtype=torch.float64))
    >>> merged.rank, merged.b.flatten()
    (1, tensor([0., 2.]))
    """
    parts = weighted_columns(updates, [c.expand(1) for c in coefficients])
    if parts is None:
        return None
    b, a = parts
    return Factors(a.to(torch.float32), b.to(torch.float32), 1.0)


def weighted_columns(
    updates: Sequence[Factors | None], weights: Sequence[Float64[Tensor, " rows"]]
) -> tuple[Float64[Tensor, "out r"], Float64[Tensor, "r in"]] | None:
    """Return (B, A) with ``B A = sum_i diag(w_i) s_i B_i A_i``; a weight of one element stands for all rows."""
    columns: list[Tensor] = []
    rows: list[Tensor] = []
    for update, weight in zip(updates, weights, strict=True):
        if update is None or not bool(weight.any()):
            continue
        scaled = (weight * update.scale).unsqueeze(1) * update.b
        twin = next((place for place, a in enumerate(rows) if torch.equal(a, update.a)), None)
        if twin is None:
            columns.append(scaled)
            rows.append(update.a)
        else:
            columns[twin] = columns[twin] + scaled
    if not columns:
        return None
    return torch.cat(columns, dim=1), torch.cat(rows).to(torch.float64)
