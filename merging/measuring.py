"""Pass 1 over the tensors of a window: inner products, angles, whether the inputs are equal, all of it finite."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Float64
from torch import Tensor

from merging.gram import add_products, angles_of, mirrored, pairs_to_measure_again, small_angle
from merging.pieces import BLOCK, Rows, row_ranges
from merging.reading import Reader
from merging.sources import TensorSource
from merging.task import Measurement, Task
from merging.workers import Workers


@dataclass(frozen=True)
class Block:
    """Consecutive chunks of one tensor, for one worker."""

    task: Task
    ranges: Sequence[Rows]
    first: int
    """Place of its first chunk among the tensor's."""


@dataclass(frozen=True)
class BlockMeasure:
    """What pass 1 found out about a block."""

    task: Task
    products: Float64[Tensor, "chunks n n"]
    base_squares: Sequence[float]
    equal: bool
    elements: int = 0
    """How many were written, where pass 2 went along."""


def blocks_of(task: Task) -> list[Block]:
    """Cut a tensor into blocks; one without elements has none."""
    ranges = list(row_ranges(task.shape)) if task.elements else []
    return [Block(task, ranges[first : first + BLOCK], first) for first in range(0, len(ranges), BLOCK)]


def measure(tasks: Sequence[Task], reader: Reader, workers: Workers) -> list[Measurement]:
    """Measure tensors, in order.

    Raises:
        ValueError: a value is NaN or infinite, or integer tensors differ; tensor, file and count are named.
    """
    blocks = [block for task in tasks for block in blocks_of(task)]
    parts = workers.map(lambda block: _measure_block(block, reader), blocks)
    found = {
        id(task): join_blocks(task, list(group), reader) for task, group in groupby(parts, key=lambda part: part.task)
    }
    return [found[id(task)] if id(task) in found else join_blocks(task, [], reader) for task in tasks]


def vectors(
    task: Task, ranges: Sequence[Rows], reader: Reader, *, again: bool = False
) -> Iterator[Float64[Tensor, "n m"]]:
    """Yield the inputs chunk by chunk as rows of a float64 matrix, less the task's origin.

    The matrix is reused: it holds the chunk until the next one is asked for.
    """
    for start, stop in ranges:
        chunk, _ = load_chunk(task, start, stop, reader, again=again, compare=False)
        yield chunk


def load_chunk(
    task: Task, start: int, stop: int, reader: Reader, *, again: bool, compare: bool
) -> tuple[Float64[Tensor, "n m"], bool]:
    """Return one chunk as a matrix, and whether all its rows were equal before the origin was taken off.

    The origin's own values stay in the scratch row ``wide``.
    """
    parts: list[Tensor] = []
    for slot, source in enumerate(task.inputs):
        twin = next((parts[i] for i in range(slot) if task.inputs[i] is source), None)
        parts.append(reader.rows(source, start, stop, slot, again=again) if twin is None else twin)
    size = parts[0].numel()
    matrix = reader.scratch.numbers(len(parts), size)
    for row, part in zip(matrix, parts, strict=True):
        row.copy_(part)
    equal = compare and all(part is parts[0] or _same(part, parts[0]) for part in parts[1:])
    origin = task.origin
    if origin is not None:
        twin = next((parts[i] for i, source in enumerate(task.inputs) if source is origin), None)
        values = reader.rows(origin, start, stop, len(parts), again=again) if twin is None else twin
        wide = reader.scratch.row("wide", size)
        matrix -= wide.copy_(values)
    return matrix, equal


def _same(part: Tensor, first: Tensor) -> bool:
    return part.dtype == first.dtype and torch.equal(part, first)


def _measure_block(block: Block, reader: Reader) -> BlockMeasure:
    task, n = block.task, len(block.task.inputs)
    products = torch.zeros(len(block.ranges), n, n, dtype=torch.float64)
    squares: list[float] = []
    equal = True
    for (start, stop), into in zip(block.ranges, products, strict=True):
        if not task.is_float:
            parts = [reader.rows(source, start, stop, slot) for slot, source in enumerate(task.inputs)]
            equal = equal and all(_same(part, parts[0]) for part in parts[1:])
            continue
        chunk, same = load_chunk(task, start, stop, reader, again=False, compare=equal)
        equal = equal and same
        add_products(chunk, into)
        if task.told.options.norm == "base" and task.base is not None:
            wide = reader.scratch.row("wide", chunk.shape[1]).copy_(reader.rows(task.base, start, stop, n + 1))
            squares.append(float(torch.dot(wide, wide)))
    return BlockMeasure(task, products, squares, equal)


def join_blocks(task: Task, parts: Sequence[BlockMeasure], reader: Reader) -> Measurement:
    """Add up a tensor's blocks in order and read off its angles."""
    equal = all(part.equal for part in parts)
    if not task.is_float:
        if not equal:
            raise ValueError(
                f"tensor {task.name}: expected equal values in all inputs, as it is of {task.inputs[0].dtype}, "
                "got others; only floating-point weights can be merged"
            )
        return Measurement(None, None, None, equal=True)
    n = len(task.inputs)
    chunks = [part.products for part in parts] or [torch.zeros(1, n, n, dtype=torch.float64)]
    products = mirrored(torch.cat(chunks).sum(0))
    base_square = math.fsum(square for part in parts for square in part.base_squares)
    if not (products.isfinite().all() and math.isfinite(base_square)):
        _refuse_non_finite(task, reader)
    angles = angles_of(products.unsqueeze(0))[0]
    if equal:
        angles = torch.where(angles.isnan(), angles, torch.zeros_like(angles))
    else:
        _measure_small_angles(task, products, angles, reader)
    wants_base = task.told.options.norm == "base" and task.base is not None
    return Measurement(products, angles, math.sqrt(base_square) if wants_base else None, equal)


def _measure_small_angles(
    task: Task, products: Float64[Tensor, "n n"], angles: Float64[Tensor, "n n"], reader: Reader
) -> None:
    """Replace, in place, the angles too close to 0 or pi for the Gram by those of |u_i - u_j| or |u_i + u_j|."""
    pairs = pairs_to_measure_again(products)
    squares = dict.fromkeys(pairs, 0.0)
    norms = products.diagonal().sqrt()
    for chunk in vectors(task, list(row_ranges(task.shape)), reader, again=True) if pairs else ():
        units = chunk / norms[:, None]
        for i, j in pairs:
            gap = units[i] - units[j] if products[i, j] > 0 else units[i] + units[j]
            squares[i, j] += float(torch.dot(gap, gap))
    for (i, j), square in squares.items():
        angles[i, j] = angles[j, i] = small_angle(square, opposite=bool(products[i, j] <= 0))


def _refuse_non_finite(task: Task, reader: Reader) -> None:
    """Name the source whose NaN or infinite values spoiled the products, with their count."""
    sources: list[TensorSource] = [*task.inputs, *([task.base] if task.base is not None else [])]
    for source in sources:
        count = 0
        for start, stop in row_ranges(task.shape):
            count += int((~reader.rows(source, start, stop, 0).isfinite()).sum())
        if count:
            raise ValueError(
                f"{source.where}: tensor {task.name}: expected finite values, got {count} that are NaN or infinite; "
                "train or export that model again"
            )
    raise ValueError(f"tensor {task.name}: expected values whose squares fit into float64, got larger; rescale it")
