"""The plan of a merge of files: everything that can be refused is refused here, before a byte is written."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from merging.agreement import refuse_disagreement
from merging.companions import companion_files
from merging.methods import find_method
from merging.opening import Desk
from merging.output import SHARD_BYTES, WeightFile, layout
from merging.pieces import CHUNK
from merging.request import PathLike, Request
from merging.rule import Rule
from merging.schedule import layer_count
from merging.single_pass import is_known_in_advance
from merging.sources import Checkpoint
from merging.task import Task
from merging.tied import says_tied
from merging.windows import MEMORY, arena_bytes, windows_of
from storage.atomic import refuse_existing
from storage.hashing import FileHashes

CONSTANT = 300 * 10**6
"""Bytes that Python, torch and the headers take up at most, beside the budget."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True, kw_only=True)
class MergePlan:
    """A merge that has passed every check the headers allow."""

    rule: Rule
    inputs: tuple[Checkpoint, ...]
    base: Checkpoint | None
    donor: Checkpoint
    """Whose file layout and dtypes the result has: the base, or else the first input."""
    companions: Path
    """The folder whose tokenizer, configuration and modules the result has."""
    dtype: str | None
    """Of the result, if one was asked for."""
    tasks: tuple[Task, ...]
    files: tuple[WeightFile, ...]
    notes: tuple[str, ...]
    desk: Desk
    output: Path
    overwrite: bool
    memory: int
    threads: int | None
    device: str

    @property
    def bytes(self) -> int:
        """Bytes of weights that will be written."""
        return sum(entry.bytes for file in self.files for entry in file.entries.values())

    @property
    def bytes_read(self) -> int:
        """Bytes of weights that will be read from the inputs and the base, once each."""
        sources = {id(source): source for task in self.tasks for source in task.sources}
        return sum(math.prod(source.shape) * source.dtype.itemsize for source in sources.values())

    def describe(self) -> dict[str, Any]:
        """Return what would be read, computed and written, in plain values."""
        rule = self.rule
        arena = arena_bytes(self.memory, len(self.inputs), self.threads or 1)
        windows = list(windows_of(self.tasks, arena))
        together = rule.granularity in ("layer", "model")
        twice = [
            task
            for window in windows
            for task in window.tasks
            if (together or not window.bytes) and task.elements and not is_known_in_advance(task)
        ]
        return {
            "method": rule.method.name,
            "space": rule.space,
            "granularity": rule.granularity,
            "parameters": rule.settings.plain(),
            "inputs": [{"path": model.path, "kind": model.kind} for model in self.inputs],
            "base": None if self.base is None else self.base.path,
            "tensors": len(self.tasks),
            "elements": sum(task.elements for task in self.tasks),
            "windows": len(windows),
            "read_twice": len(twice),
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes,
            "peak_memory": min(self.memory, self._working_set(windows)) + CONSTANT,
            "output": str(self.output),
            "files": {file.path: sum(entry.bytes for entry in file.entries.values()) for file in self.files},
            "companions": companion_files(self.companions),
            "notes": list(self.notes),
        }

    def _working_set(self, windows: Sequence[Any]) -> int:
        chunks = (self.threads or 1) * (2 * len(self.inputs) + 4) * CHUNK * torch.float64.itemsize
        return max((window.bytes for window in windows), default=0) + chunks


def plan_merge(
    request: Request,
    output: PathLike,
    *,
    shard_bytes: int | None = None,
    memory: int = MEMORY,
    threads: int | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    hashes: FileHashes | None = None,
) -> MergePlan:
    """Open every input by its headers, settle the parameters and check them against each other.

    Raises:
        ValueError: anything that can be known to be wrong without reading tensors; see ``merge_checkpoints``.
    """
    _check_resources(memory, threads, shard_bytes, device)
    desk = Desk(hashes or FileHashes(), request.lightning_checkpoints)
    opened, base, rule, notes, names = open_models(request, desk)
    models = [*opened, *([base] if base else [])]
    place = existing_parent(Path(output))
    _check_output(Path(output), overwrite, models)
    donor = base or opened[0]
    tasks = tasks_of(request, rule, opened, base, names)
    dtypes = {task.name: task.dtype for task in tasks}
    kept = Checkpoint(
        donor.path, donor.kind, donor.folder, {name: donor.tensors[name] for name in names}, donor.transformer
    )
    plan = MergePlan(
        rule=rule,
        inputs=tuple(opened),
        base=base,
        donor=donor,
        companions=Path(request.companions) if request.companions is not None else donor.folder,
        dtype=request.dtype,
        tasks=tasks,
        files=tuple(layout(kept, dtypes, shard_bytes or SHARD_BYTES)),
        notes=notes,
        desk=desk,
        output=Path(output),
        overwrite=overwrite,
        memory=memory,
        threads=threads,
        device=device,
    )
    _check_disk(plan, place)
    return plan


def existing_parent(output: Path) -> Path:
    """Return the nearest folder above ``output`` that is there, in which it and what is missing will be made.

    Raises:
        ValueError: it is no folder, or nothing may be made in it.
    """
    place = output.absolute().parent
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise ValueError(f"--output {output}: expected a place in a folder, got the file {place}; choose another")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"--output {output}: expected a folder that may be written to, got {place}; choose another")
    return place


def open_models(
    request: Request, desk: Desk
) -> tuple[list[Checkpoint], Checkpoint | None, Rule, tuple[str, ...], list[str]]:
    """Return the inputs, the base, the rule, notes for the report, and the names of the tensors to merge."""
    find_method(request.method)
    if not request.inputs:
        raise ValueError("--inputs: expected at least 1 model, got none; add --inputs")
    opened, base = desk.open_all(request.inputs, request.base)
    models = [*([base] if base else []), *opened]
    names = list(models[0].tensors)
    rule = request.rule(
        inputs=len(opened),
        has_base=base is not None,
        base_index=desk.index_of_base(opened, base),
        layers=layer_count(names),
    )
    agreement = refuse_disagreement(
        [model.path for model in models], [model.tensors for model in models], [says_tied(model) for model in models]
    )
    names = list(agreement.kept(models[0].tensors))
    idle = request.settings.idle_filters(names)
    if idle:
        raise ValueError(
            f"filter {idle[0]!r}: expected a part of a tensor's name, got one that fits none of {len(names)} "
            f"(such as {names[0]}); correct it"
        )
    notes = [*agreement.notes, *(note for model in models for note in model.notes)]
    return opened, base, rule, tuple(dict.fromkeys(notes)), names


def tasks_of(
    request: Request, rule: Rule, inputs: Sequence[Checkpoint], base: Checkpoint | None, names: Sequence[str]
) -> tuple[Task, ...]:
    """Return a task for each tensor, in the order of the donor's files."""
    if request.dtype is not None and request.dtype not in DTYPES:
        raise ValueError(f"--dtype: expected one of {', '.join(DTYPES)}, got {request.dtype!r}; choose one of them")
    donor: Mapping[str, Any] = (base or inputs[0]).tensors
    constant = rule.at("") if rule.is_constant else None

    def dtype_of(name: str) -> torch.dtype:
        own: torch.dtype = donor[name].dtype
        return DTYPES[request.dtype] if request.dtype is not None and own.is_floating_point else own

    return tuple(
        Task(
            name=name,
            inputs=tuple(model.tensors[name] for model in inputs),
            base=None if base is None else base.tensors[name],
            rule=rule,
            told=constant or rule.at(name),
            dtype=dtype_of(name),
        )
        for name in names
    )


def _check_resources(memory: int, threads: int | None, shard_bytes: int | None, device: str) -> None:
    if memory <= 0:
        raise ValueError(f"--memory: expected a positive number of bytes, got {memory}; leave it out for 2 GiB")
    if threads is not None and threads < 1:
        raise ValueError(f"--threads: expected at least 1, got {threads}; leave it out for one per processor")
    if shard_bytes is not None and shard_bytes <= 0:
        raise ValueError(f"--shard-size: expected a positive number of bytes, got {shard_bytes}; leave it out for 5 GB")
    if device not in ("cpu", "cuda"):
        raise ValueError(f"--device: expected cpu or cuda, got {device!r}; choose one of them")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: expected a CUDA device, got none; leave it out")


def _check_output(output: Path, overwrite: bool, models: Sequence[Checkpoint]) -> None:
    """Refuse a name that is taken, and one whose replacement would take an input with it."""
    refuse_existing(output, overwrite=overwrite)
    target = output.resolve()
    for model in models:
        for folder in (model.folder.resolve(), Path(model.path).resolve()):
            if target == folder or target in folder.parents or folder in target.parents:
                raise ValueError(
                    f"--output {output}: expected a place apart from the inputs, got {model.path}; choose another"
                )
    if target == Path.cwd() or target in Path.cwd().parents:
        raise ValueError(f"--output {output}: expected a folder of its own, got the current one; choose another")


def _check_disk(plan: MergePlan, place: Path) -> None:
    folder = plan.companions
    needed = plan.bytes + sum((folder / name).stat().st_size for name in companion_files(folder))
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ValueError(f"--output {plan.output}: expected {needed} bytes free on its disk, got {free}; make room")
