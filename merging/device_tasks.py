"""Both passes over many tensors on a CUDA device: from files by way of pinned memory, or where they already are.

What the kernels do not do (single elements, rows, layers, integers, one-number tensors, the norm of a base)
goes the ordinary way; the result is the same to 1e-6.

Dimensions: g groups, n inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

import torch
from torch import Tensor

from merging.combining import Keep
from merging.device import DeviceMerge, merge_on_device
from merging.gram import Gram
from merging.reading import OpenFiles, Reader, Scratch
from merging.rule import Rule
from merging.solution import Solution
from merging.solving import solution_of
from merging.sources import HeldTensor, StoredTensor, TensorSource, as_matrix
from merging.staging import Fill, Loaded, Staged, WindowPipeline, cut_windows
from merging.task import Measurement, Solved, Task
from merging.windows import MEMORY, Outcome


def suits_device(task: Task) -> bool:
    """Say whether the kernels can merge a tensor."""
    row, rule = task.rule.method, task.rule
    plain = row.kind == "coefficients" and rule.granularity == "tensor" and rule.norm != "base"
    return plain and task.is_float and task.elements > 1


def merge_files_on_device(
    tasks: Sequence[Task],
    keep: Keep,
    device: torch.device,
    *,
    memory: int = MEMORY,
    after_piece: Callable[[int], None] = lambda written: None,
    after_window: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """Merge tensors from files: while a window is merged, the next is read and the last is written.

    Arguments are those of ``merge_tasks``; ``memory`` is that of the device here, of which two windows use half each.
    """
    if not tasks:
        return []
    outcomes: list[Outcome] = []
    by_name = {task.name: task for task in tasks}

    def merge(loaded: Loaded) -> None:
        chosen = [by_name[staged.name] for staged in loaded.staged]
        merged = _merge(chosen, loaded.inputs, loaded.bases, [loaded.outputs])
        outcomes.extend(_outcomes(chosen, merged))

    with OpenFiles() as files:
        reader = Reader(files, Scratch())
        staged = [_staged(task, reader) for task in tasks]
        window = 0
        # Closed before the files are: after an error its thread may still be reading.
        with closing(WindowPipeline(device, merge).run(cut_windows(staged, memory // 2))) as parts:
            for part in parts:
                if part.window != window:
                    after_window()
                    window = part.window
                _, columns = as_matrix(part.staged.shape)
                values = part.values.reshape(-1)
                keep(by_name[part.staged.name], part.start * columns, values)
                after_piece(values.numel() * values.dtype.itemsize)
    after_window()
    return outcomes


def merge_held_on_device(tasks: Sequence[Task]) -> dict[str, Tensor]:
    """Merge tensors that are on the device; returns the results there, by name."""
    if not tasks:
        return {}
    inputs = [[_tensor(source) for source in task.inputs] for task in tasks]
    origins = [task.origin for task in tasks]
    bases = None if origins[0] is None else [_tensor(origin) for origin in origins if origin is not None]
    outputs = [torch.empty_like(row[0], dtype=task.dtype) for row, task in zip(inputs, tasks, strict=True)]
    _merge(tasks, inputs, bases, [outputs])
    return {task.name: output for task, output in zip(tasks, outputs, strict=True)}


def _merge(
    tasks: Sequence[Task],
    inputs: Sequence[Sequence[Tensor]],
    bases: Sequence[Tensor] | None,
    outputs: Sequence[Sequence[Tensor]],
) -> DeviceMerge:
    device = inputs[0][0].device
    weights = torch.tensor([task.told.weights for task in tasks], dtype=torch.float64).to(device, non_blocking=True)
    return merge_on_device(
        inputs,
        bases,
        lambda gram: [_solve(tasks, gram, weights)],
        outputs=outputs,
        names=[task.name for task in tasks],
        keep_equal=all(task.keeps_equal for task in tasks),
        dtype=tasks[0].dtype,
    )


def _solve(tasks: Sequence[Task], gram: Gram, weights: Tensor) -> Solution:
    """Solve all groups together; they share their options, or are solved once for each of them."""
    rule: Rule = tasks[0].rule
    kinds = list(dict.fromkeys(task.told.options for task in tasks))
    solutions = [solution_of(rule, gram, weights, options) for options in kinds]
    if len(kinds) == 1:
        return solutions[0]
    own = torch.tensor([kinds.index(task.told.options) for task in tasks]).to(weights.device, non_blocking=True)
    chosen = torch.stack([one.coefficients for one in solutions])[own, torch.arange(len(tasks), device=own.device)]
    masks = [one.refused for one in solutions]
    refused = None
    for place, mask in enumerate(masks):
        if mask is not None:
            part = mask & (own == place)
            refused = part if refused is None else refused | part
    reason = next((one.reason for one in solutions if one.reason), "")
    return Solution(chosen, refused=refused, reason=reason)


def _outcomes(tasks: Sequence[Task], merged: DeviceMerge) -> list[Outcome]:
    """Bring what the report needs to the host."""
    products, angles = merged.products.cpu(), merged.angles.cpu()
    equal = merged.measured.equal.cpu()
    solution = merged.solutions[0]
    coefficients = solution.coefficients.cpu()
    notes = {text: mask.cpu() for text, mask in solution.notes.items()}
    outcomes = []
    for row, task in enumerate(tasks):
        same = bool(equal[row])
        copied = task.original if same and task.keeps_equal else None
        found = tuple(text for text, mask in notes.items() if bool(mask[row])) if copied is None else ()
        solved = Solved(None if copied is not None else coefficients[row], copied, found)
        outcomes.append(Outcome(task, Measurement(products[row], angles[row], None, same), solved))
    return outcomes


def _staged(task: Task, reader: Reader) -> Staged:
    dtypes = {source.dtype for source in task.sources}
    plain = all(isinstance(source, StoredTensor) for source in task.sources) and len(dtypes) == 1
    origin = task.origin
    return Staged(
        name=task.name,
        shape=task.shape,
        # What an adapter changes, or what comes in several dtypes, travels in float32.
        dtype=next(iter(dtypes)) if plain else torch.float32,
        inputs=[_fill(source, reader, slot) for slot, source in enumerate(task.inputs)],
        base=None if origin is None else _fill(origin, reader, len(task.inputs)),
        result=task.dtype,
    )


def _fill(source: TensorSource, reader: Reader, slot: int) -> Fill:
    def fill(start: int, stop: int, host: Tensor) -> None:
        host.copy_(reader.rows(source, start, stop, slot).reshape(host.shape))

    return fill


def _tensor(source: TensorSource) -> Tensor:
    assert isinstance(source, HeldTensor)
    return source.tensor.detach().contiguous()
