"""Pass 2 over the tensors of a window: the merged values, cast once, handed to whoever keeps them.

Dimensions: n inputs, m elements of a chunk, r rows by c columns of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float32, Float64, Shaped
from torch import Tensor

from merging.gram import Gram, angles_of
from merging.measuring import Block, blocks_of, vectors
from merging.pieces import row_ranges
from merging.reading import Reader
from merging.solving import refuse, solution_of
from merging.sources import as_matrix
from merging.task import Solved, Task
from merging.workers import Workers

Keep = Callable[[Task, int, Tensor], None]
"""Called with a task, the place of the first element, and consecutive values (m,) of the result's dtype.

Calls come from several threads; the values are only lent."""


@dataclass(frozen=True)
class Piece:
    """A part of a tensor that was finished."""

    task: Task
    bytes: int
    squares: Mapping[str, float]
    """Where there are no coefficients: squared distances of its values to the ``soup`` and to ``linear`` at its weights."""


def combine(
    tasks: Sequence[Task], solved: Sequence[Solved], reader: Reader, workers: Workers, keep: Keep
) -> Iterator[Piece]:
    """Compute the merged tensors; yields what was finished after each piece of work.

    Raises:
        ValueError: a value does not fit into the dtype of the result, or a row has no mean; the tensor is named.
    """
    jobs: list[tuple[Block, Solved]] = []
    for task, one in zip(tasks, solved, strict=True):
        if (_is_elements(task) or _is_columns(task)) and one.copied is None and task.elements:
            jobs.append((Block(task, list(row_ranges(task.shape)), 0), one))
        else:
            jobs += [(block, one) for block in blocks_of(task)]
    yield from workers.map(lambda job: _combine_block(*job, reader, keep), jobs)


def _combine_block(block: Block, solved: Solved, reader: Reader, keep: Keep) -> Piece:
    task = block.task
    _, columns = as_matrix(task.shape)
    done = 0
    squares: dict[str, float] = {}
    for (start, _), values in zip(block.ranges, _values(block, solved, reader, squares), strict=True):
        result = cast(values, task, reader, exact=solved.copied is not None)
        keep(task, start * columns, result)
        done += result.numel() * result.dtype.itemsize
    return Piece(task, done, squares)


def _is_elements(task: Task) -> bool:
    return task.rule.method.kind == "elements"


def _is_columns(task: Task) -> bool:
    return task.by_line and task.rule.granularity == "column"


def _values(block: Block, solved: Solved, reader: Reader, squares: dict[str, float]) -> Iterator[Shaped[Tensor, " m"]]:
    task = block.task
    if solved.copied is not None:
        return (reader.rows(solved.copied, start, stop, 0, again=True) for start, stop in block.ranges)
    if solved.coefficients is not None:
        return _sums(block, solved.coefficients, reader)
    if _is_elements(task):
        return _elements(block, reader, squares)
    if _is_columns(task):
        return _column_sums(block, reader, squares)
    return _row_sums(block, reader, squares)


def _sums(block: Block, coefficients: Float64[Tensor, " n"], reader: Reader) -> Iterator[Float64[Tensor, " m"]]:
    """One weighted sum for all rows."""
    task = block.task
    for chunk in vectors(task, block.ranges, reader, again=True):
        values = torch.mv(chunk.T, coefficients, out=reader.scratch.row("sum", chunk.shape[1]))
        yield onto_origin(values, task, reader)


def _row_sums(block: Block, reader: Reader, squares: dict[str, float]) -> Iterator[Float64[Tensor, " m"]]:
    """A weighted sum for each row, with coefficients from the Gram matrix of that row."""
    task = block.task
    _, columns = as_matrix(task.shape)
    for (start, stop), chunk in zip(block.ranges, vectors(task, block.ranges, reader, again=True), strict=True):
        rows = chunk.reshape(len(chunk), -1, columns).movedim(0, 1)
        products = rows @ rows.mT
        norms = None
        if task.told.options.norm == "base" and task.base is not None:
            own = reader.rows(task.base, start, stop, len(chunk) + 1).to(torch.float64).reshape(-1, columns)
            norms = own.square().sum(1).sqrt()
        weights = torch.tensor([task.told.weights], dtype=torch.float64).expand(len(rows), -1)
        gram = Gram(products, angles_of(products), norms)
        solution = solution_of(task.rule, gram, weights.contiguous(), task.told.options)
        refuse(solution, [f"{task.name}, row {row}" for row in range(start, stop)])
        values = (solution.coefficients.unsqueeze(1) @ rows).reshape(-1)
        _add_squares(squares, values, chunk, task)
        yield onto_origin(values, task, reader)


def _column_sums(block: Block, reader: Reader, squares: dict[str, float]) -> Iterator[Float64[Tensor, " m"]]:
    """A weighted sum for each column: their Gram matrices are complete when all rows have been seen."""
    task = block.task
    _, columns = as_matrix(task.shape)
    n = len(task.inputs)
    products = torch.zeros(columns, n, n, dtype=torch.float64)
    base_squares = torch.zeros(columns, dtype=torch.float64)
    wants_base = task.told.options.norm == "base" and task.base is not None
    for (start, stop), chunk in zip(block.ranges, vectors(task, block.ranges, reader, again=True), strict=True):
        lines = chunk.reshape(n, -1, columns)
        for i in range(n):
            products[:, i] += (lines[i] * lines).sum(1).T
        if wants_base and task.base is not None:
            own = reader.rows(task.base, start, stop, n + 1).to(torch.float64).reshape(-1, columns)
            base_squares += own.square().sum(0)
    weights = torch.tensor([task.told.weights], dtype=torch.float64).expand(columns, -1).contiguous()
    gram = Gram(products, angles_of(products), base_squares.sqrt() if wants_base else None)
    solution = solution_of(task.rule, gram, weights, task.told.options)
    refuse(solution, [f"{task.name}, column {column}" for column in range(columns)])
    for chunk in vectors(task, block.ranges, reader, again=True):
        lines = chunk.reshape(n, -1, columns)
        values = (lines * solution.coefficients.T.unsqueeze(1)).sum(0).reshape(-1)
        _add_squares(squares, values, chunk, task)
        yield onto_origin(values, task, reader)


def _elements(block: Block, reader: Reader, squares: dict[str, float]) -> Iterator[Float64[Tensor, " m"]]:
    """Methods that look at single elements of the task vectors."""
    task = block.task
    _, columns = as_matrix(task.shape)
    shape = (-1, columns) if len(task.shape) > 1 else (1, -1)

    def walk(*, again: bool = True) -> Iterator[Float32[Tensor, "n r c"]]:
        for chunk in vectors(task, block.ranges, reader, again=again):
            yield chunk.to(torch.float32).reshape(len(chunk), *shape)

    row = task.rule.method
    function = row.compat_function if task.rule.compat else row.function
    weights = torch.tensor(task.told.weights, dtype=torch.float64)
    settled = function(walk, weights, task.told.options, task.name)
    for index, chunk in enumerate(walk()):
        values = settled(index, chunk).to(torch.float64).reshape(-1)
        _add_squares(squares, values, chunk.reshape(len(chunk), -1).to(torch.float64), task)
        yield onto_origin(values, task, reader)


def _add_squares(
    squares: dict[str, float], values: Float64[Tensor, " m"], chunk: Float64[Tensor, "n m"], task: Task
) -> None:
    weights = torch.tensor(task.told.weights, dtype=torch.float64)
    for name, shares in (("soup", torch.full_like(weights, 1 / len(weights))), ("linear", weights)):
        gap = values - shares @ chunk
        squares[name] = squares.get(name, 0.0) + float(torch.dot(gap, gap))


def onto_origin(values: Float64[Tensor, " m"], task: Task, reader: Reader) -> Float64[Tensor, " m"]:
    """Add, in place, the origin's values of the chunk that was loaded last."""
    return values if task.origin is None else values.add_(reader.scratch.row("wide", values.numel()))


def cast(values: Shaped[Tensor, " m"], task: Task, reader: Reader, *, exact: bool) -> Shaped[Tensor, " m"]:
    """Round to the dtype of the result, by way of float32, so that a 16-bit result is the rounded float32 result."""
    if not task.is_float or (exact and values.dtype == task.dtype):
        return values
    result = values
    for step, dtype in enumerate((torch.float32, task.dtype) if task.dtype != torch.float64 else (task.dtype,), 1):
        if result.dtype != dtype:
            buffer = reader.scratch.bytes(-step, result.numel() * dtype.itemsize).view(dtype)
            values, result = result, buffer.copy_(result)
    if not _fits(values if values.dtype != task.dtype else result, result):
        raise ValueError(
            f"tensor {task.name}: expected values that fit into {task.dtype}, got {float(values.abs().max()):.4g}; "
            "merge in fp32"
        )
    return result


def _fits(values: Tensor, result: Tensor) -> bool:
    """Say whether all of ``result`` is finite; a sum of squares within the dtype's range proves it at little cost."""
    limit = torch.finfo(result.dtype).max
    return float(torch.dot(values, values)) <= min(limit, 1e150) ** 2 or bool(result.isfinite().all())
