"""Models that are read and measured once and merged many times: what a search over coefficients needs.

A new t or new weights repeat the solving and the weighted sum only, on tensors in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from merging.combining import combine
from merging.measuring import measure
from merging.opening import Desk
from merging.plan import open_models, tasks_of
from merging.reading import OpenFiles, Reader, Scratch
from merging.request import Input, Request, settings_of
from merging.schedule import Settings, layer_count
from merging.solving import solve
from merging.task import Measurement, Task
from merging.workers import Workers
from storage.hashing import FileHashes


class Measured:
    """Models of a merge, held in memory with their Gram matrices."""

    def __init__(self, request: Request, tasks: Sequence[Task], threads: int | None = None) -> None:
        self._request = request
        self._tasks = tasks
        self._threads = threads
        with OpenFiles() as files, Workers(threads) as workers:
            self._found: list[Measurement] = measure(tasks, Reader(files, Scratch()), workers)

    @classmethod
    def open(cls, inputs: Sequence[Input], *, method: str, threads: int | None = None, **parameters: Any) -> Measured:
        """Read and measure models.

        Args:
            inputs, method, parameters: those of ``merge_checkpoints`` that say what is merged and how, but for
                ``t``, ``weights`` and ``settings``, which ``merge`` takes.
            threads: workers; by default one per processor.

        Raises:
            ValueError: as ``merge_checkpoints``.
        """
        request = Request(inputs=inputs, method=method, settings=Settings(), **parameters)
        desk = Desk(FileHashes(), request.lightning_checkpoints)
        opened, base, rule, _, names = open_models(request, desk)
        tasks = tasks_of(request, rule, opened, base, names)
        return cls(request, [_held(task) for task in tasks], threads)

    @property
    def names(self) -> list[str]:
        """The tensors, in file order; those of modules begin with their folder and a slash."""
        return [task.name for task in self._tasks]

    @property
    def inputs(self) -> int:
        """How many models there are."""
        return len(self._request.inputs)

    @property
    def layers(self) -> int:
        """How many layers the models have."""
        return layer_count(self.names)

    def merge(
        self, *, weights: Sequence[Any] | None = None, t: Any = None, settings: Settings | None = None
    ) -> dict[str, Tensor]:
        """Return the merged tensors by name: the same numbers as a merge of files.

        Raises:
            ValueError: a parameter does not fit, or inputs have no mean.
        """
        chosen = settings_of(settings, t=t, weights=weights, inputs=self.inputs)
        first = self._tasks[0].rule
        rule = replace(self._request, settings=chosen).rule(
            inputs=self.inputs,
            has_base=self._tasks[0].base is not None,
            base_index=first.base_index,
            layers=first.layers,
        )
        tasks = [replace(task, rule=rule, told=rule.at(task.name)) for task in self._tasks]
        results = {task.name: torch.empty(task.elements, dtype=task.dtype) for task in tasks}

        def keep(task: Task, start: int, values: Tensor) -> None:
            results[task.name][start : start + values.numel()] = values

        with OpenFiles() as files, Workers(self._threads) as workers:
            reader = Reader(files, Scratch())
            for _ in combine(tasks, solve(tasks, self._found), reader, workers, keep):
                pass
        return {task.name: results[task.name].reshape(task.shape) for task in tasks}


def _held(task: Task) -> Task:
    """Return the task with its inputs in memory; a source that serves several inputs is read once."""
    distinct = {id(source): source for source in task.sources}
    held = {key: source.held() for key, source in distinct.items()}
    base = None if task.base is None else held.get(id(task.base)) or task.base.held()
    return replace(task, inputs=tuple(held[id(source)] for source in task.inputs), base=base)
