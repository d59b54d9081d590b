"""The two passes over a window as Triton kernels: one launch a pass over tables of addresses and chunks.

A chunk is one program's.  It leaves sums of its own, which a second, small kernel adds up in the order of the
chunks: no atomics, so equal inputs give equal bits.  Products are float64, formed from differences in
float64: reading 16-bit weights takes longer than converting them.

A launch is compiled for the dtypes of its tensors.  Addresses and sizes come from tables, of which the
compiler knows nothing: whole blocks are loaded without a mask, and where all addresses are multiples of 16 it
is told so, for either would otherwise reduce a thread's loads to one element.

The functions below the kernels have the signatures of those in ``merging.plain_passes``.

Dimensions: r runs, p pairs, n inputs, t results, g groups (see ``merging.ragged``).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float64, Int32, Int64
from torch import Tensor

from merging.device_window import Window
from merging.ragged import INDEX_BITS, on_device

COMPILED: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": True}
"""Said, not left to defaults, which change between versions of Triton and would change the last bits of results."""

TYPE_OF = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32, torch.float64: tl.float64}

BLOCK = 1024
"""Elements that a program holds at once: 8 a thread, one load of 16 bytes for each 16-bit input."""

TAIL = 128
"""The same where a mask is needed or float64 fills the registers."""

FOLD = 8
"""Neighbouring products that a thread adds up before they reach its running sums, which would fill its registers."""


@triton.jit
@no_type_check
def _pointer(address, start, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    pointer = address.to(tl.pointer_type(DTYPE)) + start
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
@no_type_check
def _load(pointer, offsets, size, WHOLE: tl.constexpr):
    mask = None if WHOLE else offsets < size
    return tl.load(pointer + offsets, mask=mask, other=None if WHOLE else 0.0)


@triton.jit
@no_type_check
def _fold(values, BLOCK: tl.constexpr, FOLD: tl.constexpr):
    return tl.sum(tl.reshape(values, [BLOCK // FOLD, FOLD]), axis=1)


@triton.jit
@no_type_check
def _measure_block(
    left, right, base, at, size, xx, xy, yy, differ,
    HAS_BASE: tl.constexpr, BLOCK: tl.constexpr, FOLD: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    offsets = at + tl.arange(0, BLOCK)
    x = _load(left, offsets, size, WHOLE).to(tl.float64)
    y = _load(right, offsets, size, WHOLE).to(tl.float64)
    differ += _fold((x != y).to(tl.int32), BLOCK, FOLD)
    if HAS_BASE:
        b = _load(base, offsets, size, WHOLE).to(tl.float64)
        x -= b
        y -= b
    xx += _fold(x * x, BLOCK, FOLD)
    xy += _fold(x * y, BLOCK, FOLD)
    yy += _fold(y * y, BLOCK, FOLD)
    return xx, xy, yy, differ


@triton.jit
@no_type_check
def measure_kernel(
    chunks, sizes, slots, addresses, pairs, partials,
    N: tl.constexpr, HAS_BASE: tl.constexpr, PAIRS: tl.constexpr, CHUNK: tl.constexpr,
    DTYPE: tl.constexpr, BASE_DTYPE: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr, FOLD: tl.constexpr, INDEX_BITS: tl.constexpr,
):  # fmt: skip
    """Leave (x x, x y, y y, elements that differ) of one pair of inputs over one chunk in ``partials``.

    The pairs of a chunk are neighbouring programs, so that all but the first find it in the cache.
    """
    program = tl.program_id(0)
    pair = program % PAIRS
    entry = tl.load(chunks + program // PAIRS)
    run = entry >> INDEX_BITS
    index = entry & ((1 << INDEX_BITS) - 1)
    start = index * CHUNK
    size = tl.minimum(tl.load(sizes + run) - start, CHUNK).to(tl.int32)
    row = addresses + run * (N + HAS_BASE)
    left = _pointer(tl.load(row + tl.load(pairs + 2 * pair)), start, DTYPE, ALIGNED)
    right = _pointer(tl.load(row + tl.load(pairs + 2 * pair + 1)), start, DTYPE, ALIGNED)
    base = left
    if HAS_BASE:
        base = _pointer(tl.load(row + N), start, BASE_DTYPE, ALIGNED)
    xx = tl.zeros([BLOCK // FOLD], tl.float64)
    xy = tl.zeros([BLOCK // FOLD], tl.float64)
    yy = tl.zeros([BLOCK // FOLD], tl.float64)
    differ = tl.zeros([BLOCK // FOLD], tl.int32)
    whole = size // BLOCK * BLOCK
    for at in range(0, whole, BLOCK):
        xx, xy, yy, differ = _measure_block(
            left, right, base, at, size, xx, xy, yy, differ, HAS_BASE, BLOCK, FOLD, True
        )
    if whole < size:
        xx, xy, yy, differ = _measure_block(
            left, right, base, whole, size, xx, xy, yy, differ, HAS_BASE, BLOCK, FOLD, False
        )
    place = partials + ((tl.load(slots + run) + index) * PAIRS + pair) * 4
    tl.store(place, tl.sum(xx))
    tl.store(place + 1, tl.sum(xy))
    tl.store(place + 2, tl.sum(yy))
    tl.store(place + 3, tl.sum(differ).to(tl.float64))


@triton.jit
@no_type_check
def add_up_kernel(rows, bounds, sums, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """Add the ``rows`` (width) from ``bounds[p]`` to ``bounds[p + 1]`` in a fixed order, for program p."""
    program = tl.program_id(0).to(tl.int64)
    first = tl.load(bounds + program)
    last = tl.load(bounds + program + 1)
    columns = tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float64)
    for at in range(first, last, ROWS):
        row = at + tl.arange(0, ROWS)
        mask = (row < last)[:, None] & (columns < WIDTH)[None, :]
        total += tl.load(rows + row[:, None] * WIDTH + columns[None, :], mask=mask, other=0.0)
    tl.store(sums + program * WIDTH + columns, tl.sum(total, axis=0), mask=columns < WIDTH)


@triton.jit
@no_type_check
def _sum_block(
    run, row, coefficients, copies, targets, overflows, start, at, size, runs,
    N: tl.constexpr, HAS_BASE: tl.constexpr, TIMES: tl.constexpr,
    DTYPE: tl.constexpr, BASE_DTYPE: tl.constexpr, OUT: tl.constexpr, WORK: tl.constexpr,
    ALIGNED: tl.constexpr, BLOCK: tl.constexpr, FOLD: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    offsets = at + tl.arange(0, BLOCK)
    overflow = tl.zeros([BLOCK // FOLD], tl.int32)
    for t in tl.static_range(TIMES):
        place = t * runs + run
        copied = tl.load(copies + place)
        total = tl.zeros([BLOCK], WORK)
        kept = total
        if HAS_BASE:
            b = _load(_pointer(tl.load(row + N), start, BASE_DTYPE, ALIGNED), offsets, size, WHOLE).to(WORK)
            kept = b
        for i in tl.static_range(N):
            # Every result but the first finds these values in the cache.
            x = _load(_pointer(tl.load(row + i), start, DTYPE, ALIGNED), offsets, size, WHOLE).to(WORK)
            kept = tl.where(copied == i, x, kept)
            if HAS_BASE:
                x -= b
            total += tl.load(coefficients + place * N + i).to(WORK) * x
        if HAS_BASE:
            total += b
        total = tl.where(copied >= 0, kept, total)
        if total.dtype != OUT:
            # By way of float32, so that a 16-bit result is the rounded float32 result, bit for bit.
            total = total.to(tl.float32)
        result = total.to(OUT)
        seen = result.to(total.dtype)
        overflow += _fold((seen - seen != 0.0).to(tl.int32), BLOCK, FOLD)
        target = _pointer(tl.load(targets + run * TIMES + t), start, OUT, ALIGNED)
        tl.store(target + offsets, result, mask=None if WHOLE else offsets < size)
    # Several programs may meet at this place; all of them write the same.
    tl.store(overflows + run + tl.zeros([BLOCK // FOLD], tl.int32), 1, mask=overflow > 0)


@triton.jit(do_not_specialize=["runs"])
@no_type_check
def sum_kernel(
    chunks, sizes, addresses, coefficients, copies, wide, targets, overflows, runs,
    N: tl.constexpr, HAS_BASE: tl.constexpr, TIMES: tl.constexpr, CHUNK: tl.constexpr,
    DTYPE: tl.constexpr, BASE_DTYPE: tl.constexpr, OUT: tl.constexpr, NARROW: tl.constexpr,
    ALIGNED: tl.constexpr, BLOCK: tl.constexpr, TAIL: tl.constexpr, FOLD: tl.constexpr,
    INDEX_BITS: tl.constexpr,
):  # fmt: skip
    """Write one chunk of every result: the inputs come from memory once, whatever the number of results.

    Runs that are marked ``wide`` are summed in float64, for their terms cancel; the others in ``NARROW``.
    Those, and what is left after the last whole block, take smaller blocks: registers are shared by all.
    """
    entry = tl.load(chunks + tl.program_id(0))
    run = entry >> INDEX_BITS
    start = (entry & ((1 << INDEX_BITS) - 1)) * CHUNK
    size = tl.minimum(tl.load(sizes + run) - start, CHUNK).to(tl.int32)
    row = addresses + run * (N + HAS_BASE)
    if tl.load(wide + run) != 0:
        for at in range(0, size, TAIL):
            _sum_block(
                run, row, coefficients, copies, targets, overflows, start, at, size, runs,
                N, HAS_BASE, TIMES, DTYPE, BASE_DTYPE, OUT, tl.float64, ALIGNED, TAIL, FOLD, False,
            )  # fmt: skip
    else:
        whole = size // BLOCK * BLOCK
        for at in range(0, whole, BLOCK):
            _sum_block(
                run, row, coefficients, copies, targets, overflows, start, at, size, runs,
                N, HAS_BASE, TIMES, DTYPE, BASE_DTYPE, OUT, NARROW, ALIGNED, BLOCK, FOLD, True,
            )  # fmt: skip
        for at in range(whole, size, TAIL):
            _sum_block(
                run, row, coefficients, copies, targets, overflows, start, at, size, runs,
                N, HAS_BASE, TIMES, DTYPE, BASE_DTYPE, OUT, NARROW, ALIGNED, TAIL, FOLD, False,
            )  # fmt: skip


def measure(window: Window, *, block: int = BLOCK) -> Float64[Tensor, "r p 4"]:
    """Return for every run and pair (x x, x y, y y, elements that differ), of differences from the base."""
    ragged, n, width = window.ragged, window.n, 4 * len(window.pairs)
    partials = torch.empty(ragged.chunks, width, dtype=torch.float64, device=window.device)
    kinds = [(row[0].dtype, _base_dtype(window, place)) for place, row in enumerate(window.inputs)]
    launches = ragged.launches(kinds, window.addresses)
    tables = on_device([ragged.chunk_table(runs) for _, _, runs in launches], window.device) if launches else []
    for (kind, aligned, _), chunks in zip(launches, tables, strict=True):
        dtype, base = kinds[kind]
        with _on(window.device):
            measure_kernel[(len(chunks) * len(window.pairs),)](
                chunks, window.sizes, window.slots, window.places, window.pairs, partials,
                N=n, HAS_BASE=int(window.bases is not None), PAIRS=len(window.pairs), CHUNK=ragged.chunk,
                DTYPE=TYPE_OF[dtype], BASE_DTYPE=TYPE_OF[base], ALIGNED=aligned,
                BLOCK=block, FOLD=FOLD, INDEX_BITS=INDEX_BITS, **COMPILED,
            )  # fmt: skip
    return add_up(partials, window.slots, ragged.runs).reshape(ragged.runs, -1, 4)


def add_up(rows: Float64[Tensor, "m width"], bounds: Int64[Tensor, " _"], count: int) -> Float64[Tensor, "_ width"]:
    """Return the sums of ``rows`` between each of the ``count + 1`` bounds and the next, in a fixed order."""
    width = rows.shape[1]
    sums = torch.zeros(count, width, dtype=torch.float64, device=rows.device)
    columns = triton.next_power_of_2(width)
    if count:
        with _on(rows.device):
            add_up_kernel[(count,)](
                rows, bounds, sums, WIDTH=width, COLUMNS=columns, ROWS=max(1, min(256, 4096 // columns)), **COMPILED
            )
    return sums


def combine(
    window: Window,
    coefficients: Float64[Tensor, "t r n"],
    copies: Int32[Tensor, "t r"],
    wide: Int32[Tensor, " r"],
    outputs: Sequence[Sequence[Tensor]],
    *,
    block: int = BLOCK,
) -> Int32[Tensor, " r"]:
    """Write the t results into ``outputs``; return 1 for every run that holds a value its dtype cannot.

    Args:
        window: the inputs.
        coefficients: for every result and run.
        copies: the input whose values are the result, n for the base, -1 for the weighted sum.
        wide: 1 for runs that are summed in float64.
        outputs: for every result, a tensor for each of the window's.
        block: elements that a program holds at once.
    """
    ragged, times = window.ragged, len(outputs)
    overflows = torch.zeros(ragged.runs, dtype=torch.int32, device=window.device)
    kinds = [
        (row[0].dtype, _base_dtype(window, place), outs[0].dtype)
        for place, (row, outs) in enumerate(zip(window.inputs, zip(*outputs, strict=True), strict=True))
    ]
    addresses = ragged.addresses(list(zip(*outputs, strict=True)))
    launches = ragged.launches(kinds, torch.cat([window.addresses, addresses], 1))
    entries = [ragged.chunk_table(runs) for _, _, runs in launches]
    targets, *tables = on_device([addresses, *entries], window.device)
    for (kind, aligned, _), chunks in zip(launches, tables, strict=True):
        dtype, base, out = kinds[kind]
        narrow = tl.float64 if torch.float64 in kinds[kind] else tl.float32
        with _on(window.device):
            sum_kernel[(len(chunks),)](
                chunks, window.sizes, window.places, coefficients, copies, wide, targets, overflows, ragged.runs,
                N=window.n, HAS_BASE=int(window.bases is not None), TIMES=times, CHUNK=ragged.chunk,
                DTYPE=TYPE_OF[dtype], BASE_DTYPE=TYPE_OF[base], OUT=TYPE_OF[out], NARROW=narrow, ALIGNED=aligned,
                BLOCK=block, TAIL=TAIL, FOLD=FOLD, INDEX_BITS=INDEX_BITS, **COMPILED,
            )  # fmt: skip
    return overflows


def _base_dtype(window: Window, place: int) -> torch.dtype:
    return window.inputs[place][0].dtype if window.bases is None else window.bases[place].dtype


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Make ``device`` the one that kernels are launched on; Triton's interpreter has none."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
