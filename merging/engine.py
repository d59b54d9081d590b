"""``merge_checkpoints``: folders in, one folder out, a tensor at a time.

Headers -> plan -> for each tensor Gram, coefficients, weighted sum -> a folder built beside its name and
renamed once.  Memory does not grow with the model: one tensor of each input at most, or chunks of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from merging.companions import copy_companions
from merging.group import MergedTensor, merge_tensor
from merging.plan import MergePlan, PathLike, plan_merge
from merging.report import TensorRecord, merge_report
from merging.rule import Number
from merging.sources import SINGLE
from storage.atomic import building_folder
from storage.json_file import write_json
from storage.manifest import write_manifest
from storage.tensor_file import Entry, TensorFileWriter, bytes_of, dtype_code

MEMORY = 2 * 2**30
"""Bytes of a tensor's inputs that may be held at once."""

Progress = Callable[[int, int], None]
"""Called with (bytes written, bytes in total) after every tensor."""

Complete = Callable[[Path], None]
"""Called with the folder that is being built, before its record and manifest are written."""


def merge_checkpoints(
    inputs: Sequence[PathLike],
    output: PathLike,
    *,
    method: str,
    base: PathLike | None = None,
    weights: Sequence[Number] | None = None,
    t: Number | None = None,
    space: str | None = None,
    norm: str = "interpolate",
    antipodal: str = "error",
    memory: int = MEMORY,
    overwrite: bool = False,
    progress: Progress | None = None,
    complete: Complete | None = None,
) -> dict[str, Any]:
    """Merge model folders and adapters into one model folder, and return the content of its merge.json.

    Args:
        inputs: folders of sentence-transformers models, of transformers models, or of PEFT LoRA adapters,
            which are folded into their base on the fly.
        output: the folder to write; it appears whole or not at all.
        method: a name of ``METHODS``.
        base: the model that the inputs were trained from; by default the one that all adapters name.
            Task vectors are taken from it, and tokenizer, configuration and modules come from it.
        weights: one per input, scaled to sum 1; equal by default.
        t: position between two inputs, in [0, 1]; 0 is the base if it is an input, else the first.
        space: ``task_vector`` (differences from the base) or ``weight``; by default the former when a base is
            known and is no input itself.
        norm: length of a spherical result: ``interpolate``, ``base`` or ``geometric``.
        antipodal: for opposite inputs: ``error``, ``linear`` or ``base``.
        memory: bytes of one tensor's inputs to hold between the passes; beyond it they are read twice.
        overwrite: replace an output folder that exists.
        progress: called with (bytes written, bytes in total).
        complete: called with the folder when the companions of the weights (tokenizer, modules) are in it, to change them.

    Raises:
        ValueError: a mistake in what was asked or a checkpoint that cannot be merged; nothing is left under
            ``output``.  The message says what was expected, what came and what to do, in one line.
    """
    plan = plan_merge(
        inputs,
        output,
        method=method,
        base=base,
        weights=weights,
        t=t,
        space=space,
        norm=norm,
        antipodal=antipodal,
        memory=memory,
        overwrite=overwrite,
    )
    with building_folder(plan.output, overwrite=overwrite) as folder:
        copy_companions(plan.donor.folder, folder)
        if complete is not None:
            complete(folder)
        records = _write_weights(plan, folder, progress)
        report = merge_report(plan, records)
        write_json(folder / "merge.json", report)
        write_manifest(folder, kind="merge")
    return report


def _write_weights(plan: MergePlan, folder: Path, progress: Progress | None) -> dict[str, TensorRecord]:
    """Write one safetensors file a module, and return what the report needs of each tensor."""
    records: dict[str, TensorRecord] = {}
    done = 0
    for module, group in groupby(plan.donor.tensors, key=_module_of):
        names = list(group)
        entries = [_entry(plan, name, module) for name in names]
        (folder / module).mkdir(parents=True, exist_ok=True)
        with TensorFileWriter(folder / module / SINGLE, entries, {"format": "pt"}) as writer:
            for name, entry in zip(names, entries, strict=True):
                merged = _merge_one(plan, name)
                offset = 0
                for data in map(bytes_of, merged.chunks()):
                    writer.write(entry.name, data, offset)
                    offset += len(data)
                records[name] = TensorRecord.of(merged)
                done += entry.bytes
                if progress is not None:
                    progress(done, plan.bytes)
    return records


def _merge_one(plan: MergePlan, name: str) -> MergedTensor:
    base = None if plan.base is None else plan.base.tensors[name]
    return merge_tensor(name, [model.tensors[name] for model in plan.inputs], base, plan.rule, plan.memory)


def _module_of(name: str) -> str:
    """Return the folder of a tensor's module: what stands before the last slash."""
    return name.rpartition("/")[0]


def _entry(plan: MergePlan, name: str, module: str) -> Entry:
    source = plan.donor.tensors[name]
    return Entry(name.removeprefix(f"{module}/"), dtype_code(source.dtype), source.shape)
