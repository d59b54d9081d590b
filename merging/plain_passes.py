"""The two passes over a window in plain torch: where Triton is missing, on a CPU, and to check the kernels.

In float64 throughout, a piece of a run at a time.  The functions have the signatures of those in
``merging.triton_kernels`` and synchronise as little.

Dimensions: r runs, p pairs, n inputs, t results, m elements of a piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float64, Int32, Int64
from torch import Tensor

from merging.device_window import Window
from merging.ragged import pairs_of

PIECE = 2**18
"""Elements of an input that are in work at once."""


def measure(window: Window) -> Float64[Tensor, "r p 4"]:
    """Return for every run and pair (x x, x y, y y, elements that differ), of differences from the base."""
    pairs = pairs_of(window.n)
    left, right = (column.to(window.device) for column in pairs.T)
    sums = torch.zeros(window.ragged.runs, len(pairs), 4, dtype=torch.float64, device=window.device)
    for run, place in enumerate(window.ragged.tensors.tolist()):
        for piece in _pieces(window, run):
            x = torch.stack([tensor.view(-1)[piece] for tensor in window.inputs[place]]).to(torch.float64)
            sums[run, :, 3] += (x[left] != x[right]).sum(1)
            if window.bases is not None:
                x -= window.bases[place].view(-1)[piece].to(torch.float64)
            products = x @ x.T
            sums[run, :, 0] += products.diagonal()[left]
            sums[run, :, 1] += products[left, right]
            sums[run, :, 2] += products.diagonal()[right]
    return sums


def add_up(rows: Float64[Tensor, "m width"], bounds: Int64[Tensor, " _"], count: int) -> Float64[Tensor, "_ width"]:
    """Return the sums of ``rows`` between each of the ``count + 1`` bounds and the next."""
    parts = [rows[first:last].sum(0) for first, last in pairwise(bounds.tolist())]
    return torch.stack(parts) if count else rows.new_zeros(0, rows.shape[1])


def combine(
    window: Window,
    coefficients: Float64[Tensor, "t r n"],
    copies: Int32[Tensor, "t r"],
    wide: Int32[Tensor, " r"],
    outputs: Sequence[Sequence[Tensor]],
) -> Int32[Tensor, " r"]:
    """Write the t results into ``outputs``; return 1 for every run that holds a value its dtype cannot.

    See :func:`merging.triton_kernels.combine`; ``wide`` changes nothing, for every sum is in float64.
    """
    overflows = torch.zeros(window.ragged.runs, dtype=torch.int32, device=window.device)
    for run, place in enumerate(window.ragged.tensors.tolist()):
        for piece in _pieces(window, run):
            x = torch.stack([tensor.view(-1)[piece] for tensor in window.inputs[place]]).to(torch.float64)
            base = None if window.bases is None else window.bases[place].view(-1)[piece].to(torch.float64)
            for t, tensors in enumerate(outputs):
                values = _values(x, base, coefficients[t, run], copies[t, run])
                target = tensors[place].view(-1)[piece]
                if target.dtype != torch.float64:
                    # By way of float32, so that a 16-bit result is the rounded float32 result, bit for bit.
                    values = values.to(torch.float32)
                target.copy_(values)
                overflows[run] |= ~target.isfinite().all()
    return overflows


def _values(
    x: Float64[Tensor, "n m"],
    base: Float64[Tensor, " m"] | None,
    coefficients: Float64[Tensor, " n"],
    copied: Int32[Tensor, ""],
) -> Float64[Tensor, " m"]:
    """Return the weighted sum of the inputs, or what ``copied`` names, chosen without asking the device."""
    if base is None:
        total, sources = coefficients @ x, x
    else:
        total, sources = base + coefficients @ (x - base), torch.cat([x, base.unsqueeze(0)])
    chosen = sources.index_select(0, copied.clamp(min=0).to(torch.int64).unsqueeze(0))[0]
    return torch.where(copied >= 0, chosen, total)


def _pieces(window: Window, run: int) -> Iterator[slice]:
    """Yield the parts of a run, counted from the first element of its tensor."""
    first = int(window.ragged.starts[run])
    end = first + int(window.ragged.sizes[run])
    return (slice(start, min(start + PIECE, end)) for start in range(first, end, PIECE))
