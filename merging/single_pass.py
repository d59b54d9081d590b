"""Methods whose coefficients are known before anything is read: measured and summed in one pass.

The linear ones are such; the report's angles are measured on the way.  The values are those of two passes, but
for the sign of zeros: a chunk that all inputs agree on is copied, and so is then a tensor of such chunks.

Dimensions: n inputs, m elements of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from jaxtyping import Float64
from torch import Tensor

from merging.combining import Keep, cast, onto_origin
from merging.gram import Gram, add_products
from merging.measuring import Block, BlockMeasure, blocks_of, join_blocks, load_chunk
from merging.reading import Reader
from merging.solving import refuse, solution_of
from merging.sources import as_matrix
from merging.task import Measurement, Solved, Task
from merging.workers import Workers


def is_known_in_advance(task: Task) -> bool:
    """Say whether a tensor can be merged in one pass; not in float64, where a sum of equal values may be rounded."""
    plain = task.is_float and task.elements > 0 and all(source.dtype != torch.float64 for source in task.sources)
    return plain and not task.rule.method.needs_gram and task.rule.norm != "base"


def merge_in_one_pass(
    tasks: Sequence[Task], reader: Reader, workers: Workers, keep: Keep, after_piece: Callable[[int], None]
) -> list[tuple[Measurement, Solved]]:
    """Merge tensors and return what is known about each, in order.

    Raises:
        ValueError: a value is not finite or does not fit into the dtype of the result; the tensor is named.
    """
    coefficients = {id(task): _coefficients(task) for task in tasks}
    blocks = [block for task in tasks for block in blocks_of(task)]
    parts = workers.map(lambda block: _merge_block(block, coefficients[id(block.task)], reader, keep), blocks)
    found: list[tuple[Measurement, Solved]] = []
    for task, group in groupby(parts, key=lambda part: part.task):
        measures = []
        for part in group:
            measures.append(part)
            after_piece(part.elements * task.dtype.itemsize)
        measured = join_blocks(task, measures, reader)
        assert measured.products is not None
        still = task.origin is not None and not measured.products.any()
        if measured.equal and task.keeps_equal:
            found.append((measured, Solved(None, copied=task.original)))
        elif still:
            found.append((measured, Solved(None, copied=task.origin)))
        else:
            found.append((measured, Solved(coefficients[id(task)])))
    return found


def _coefficients(task: Task) -> Float64[Tensor, " n"]:
    """Ask the method, with a Gram matrix of zeros, which it does not look at."""
    n = len(task.inputs)
    zeros = torch.zeros(1, n, n, dtype=torch.float64)
    weights = torch.tensor([task.told.weights], dtype=torch.float64)
    solution = solution_of(task.rule, Gram(zeros, zeros), weights, task.told.options)
    refuse(solution, [task.name])
    return solution.coefficients[0]


def _merge_block(block: Block, coefficients: Float64[Tensor, " n"], reader: Reader, keep: Keep) -> BlockMeasure:
    task, n = block.task, len(block.task.inputs)
    _, columns = as_matrix(task.shape)
    products = torch.zeros(len(block.ranges), n, n, dtype=torch.float64)
    equal, elements = True, 0
    for (start, stop), into in zip(block.ranges, products, strict=True):
        chunk, same = load_chunk(task, start, stop, reader, again=False, compare=True)
        equal = equal and same
        add_products(chunk, into)
        if not into.isfinite().all():
            # The report of what is not finite comes when the tensor is complete; its values are of no use.
            continue
        elements += chunk.shape[1]
        if same and task.keeps_equal:
            original = reader.rows(task.original, start, stop, 0)
            keep(task, start * columns, cast(original, task, reader, exact=True))
            continue
        values = torch.mv(chunk.T, coefficients, out=reader.scratch.row("sum", chunk.shape[1]))
        keep(task, start * columns, cast(onto_origin(values, task, reader), task, reader, exact=False))
    return BlockMeasure(task, products, [], equal, elements)
