"""``merge_checkpoints``: folders in, one folder out.

Headers -> plan -> windows of tensors: Gram, coefficients, weighted sum -> a folder built beside its name and
renamed once.  Memory does not grow with the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from merging.card import CardNotes, front_matter_of, model_card
from merging.companions import copy_companions, record_dtype
from merging.output import WeightWriters
from merging.plan import MergePlan, plan_merge
from merging.report import merge_report
from merging.request import Input, PathLike, Request, settings_of
from merging.schedule import Settings
from merging.sources import Checkpoint
from merging.task import Task
from merging.windows import MEMORY, Outcome, merge_tasks
from storage.atomic import building_folder, write_text
from storage.hashing import FileHashes
from storage.json_file import write_json
from storage.manifest import weight_files, write_manifest

Progress = Callable[[int, int], None]
"""Called with (bytes written, bytes in total) after every piece."""

Complete = Callable[[Path, MergePlan], CardNotes | None]
"""Called with the folder that is being built, before its record and manifest are written; its notes go into the card."""


def merge_checkpoints(
    inputs: Sequence[Input],
    output: PathLike,
    *,
    method: str,
    base: PathLike | None = None,
    weights: Sequence[Any] | None = None,
    t: Any = None,
    space: str | None = None,
    granularity: str = "tensor",
    norm: str = "interpolate",
    antipodal: str = "error",
    scale: Any = None,
    density: Any = None,
    gamma: Any = None,
    epsilon: Any = None,
    normalize: Any = None,
    rescale: Any = None,
    select_topk: Any = None,
    seed: int = 0,
    settings: Settings | None = None,
    extrapolate: bool = False,
    compat: str | None = None,
    dtype: str | None = None,
    companions: PathLike | None = None,
    lightning_checkpoints: bool = False,
    shard_bytes: int | None = None,
    memory: int = MEMORY,
    threads: int | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    progress: Progress | None = None,
    complete: Complete | None = None,
    recipe: str | None = None,
    extra: Mapping[str, Any] | None = None,
    hashes: FileHashes | None = None,
) -> dict[str, Any]:
    """Merge model folders and adapters into one model folder, and return the content of its merge.json.

    A parameter that is a number may be a schedule as in mergekit's recipes: a list of numbers is a gradient over
    the layers, a list of ``{filter, value}`` speaks of tensors by parts of their names.

    Args:
        inputs: folders of sentence-transformers models, of transformers models, or of PEFT LoRA adapters,
            which are folded into their base on the fly; or pairs (model, adapter).
        output: the folder to write; it appears whole or not at all.
        method: a name of ``METHODS``.
        base: the model that the inputs were trained from; by default the one that all adapters name.
            Task vectors are taken from it, and tokenizer, configuration and modules come from it.
        weights: one per input, scaled to sum 1 where the method averages; equal by default.
        t: position between two inputs, in [0, 1]; 0 is the base if it is an input, else the first.
        space: ``task_vector`` (differences from the base) or ``weight``; by default the former when a base is
            known and is no input itself.
        granularity: what has an angle of its own: ``tensor``, ``row``, ``column``, ``layer`` or ``model``.
        norm: length of a spherical result: ``interpolate``, ``base`` or ``geometric``.
        antipodal: for opposite inputs: ``error``, ``linear`` or ``base``.
        scale: factor of the merged task vector (mergekit's ``lambda``).
        density: share of elements that sparse methods keep, in [0, 1]; one number or one per input.
        gamma: share of the largest elements that breadcrumbs drop; one number or one per input.
        epsilon: half the spread of DELLA's keep probabilities; one number or one per input.
        normalize: divide by the sum of the weights that took part.
        rescale: bring sparse task vectors back to their size.
        select_topk: share of elements that SCE keeps, in [0, 1].
        seed: of random masks.
        settings: all of the parameters above from ``weights`` to ``select_topk``, as a recipe gives them.
        extrapolate: allow t outside [0, 1] and negative weights.
        compat: ``mergekit`` for its formulas in place of ours.
        dtype: of the result: ``float32``, ``bfloat16``, ``float16`` or ``float64``; by default the base's or the
            first input's.
        companions: the folder whose tokenizer and configuration the result has; by default the base's.
        lightning_checkpoints: read ``.ckpt`` files among the inputs.
        shard_bytes: largest weight file; 5 GB by default.
        memory: bytes that the inputs may take up at once.
        threads: workers; by default one per processor.
        device: ``cpu`` or ``cuda``.
        overwrite: replace an output folder that exists.
        progress: called with (bytes written, bytes in total).
        complete: called with the folder, when the companions of the weights are in it, and the plan: it may change them.
        recipe: the text of the recipe, for the model card.
        extra: further entries of merge.json.
        hashes: SHA-256 that were begun earlier.

    Raises:
        ValueError: a mistake in what was asked or a checkpoint that cannot be merged; nothing is left under
            ``output``.  The message says what was expected, what came and what to do, in one line.
    """
    chosen = settings_of(
        settings,
        t=t,
        weights=weights,
        scale=scale,
        density=density,
        gamma=gamma,
        epsilon=epsilon,
        normalize=normalize,
        rescale=rescale,
        select_topk=select_topk,
        inputs=len(inputs),
    )
    request = Request(
        inputs=inputs,
        method=method,
        base=base,
        settings=chosen,
        space=space,
        granularity=granularity,
        norm=norm,
        antipodal=antipodal,
        seed=seed,
        extrapolate=extrapolate,
        compat=compat,
        dtype=dtype,
        companions=companions,
        lightning_checkpoints=lightning_checkpoints,
    )
    known = hashes or FileHashes()
    try:
        plan = plan_merge(
            request,
            output,
            shard_bytes=shard_bytes,
            memory=memory,
            threads=threads,
            device=device,
            overwrite=overwrite,
            hashes=known,
        )
        return carry_out(plan, progress=progress, complete=complete, recipe=recipe, extra=extra)
    finally:
        if hashes is None:
            # A merge that ends early does not go on reading its inputs.
            known.stop()


def carry_out(
    plan: MergePlan,
    *,
    progress: Progress | None = None,
    complete: Complete | None = None,
    recipe: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write what was planned, and return the content of merge.json."""
    files = [path for model in (*plan.inputs, *([plan.base] if plan.base else [])) for path in _weights_of(model)]
    plan.desk.hashes.start(files)
    with building_folder(plan.output, overwrite=plan.overwrite) as folder:
        copy_companions(plan.companions, folder)
        notes = complete(folder, plan) if complete is not None else None
        if plan.dtype is not None:
            record_dtype(folder, plan.dtype)
        writers = WeightWriters(folder, plan.files)
        with writers:
            outcomes = _merge(plan, writers, progress)
        report = merge_report(plan, outcomes) | dict(extra or {})
        write_json(folder / "merge.json", report)
        card = plan.companions / "README.md"
        front = front_matter_of(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else {}
        write_text(folder / "README.md", model_card(report, recipe, front, name=plan.output.name, notes=notes))
        write_manifest(folder, known=writers.hashes, kind="merge")
    return report


def _merge(plan: MergePlan, writers: WeightWriters, progress: Progress | None) -> list[Outcome]:
    done = 0

    def keep(task: Task, first: int, values: Any) -> None:
        writers.keep(task.name, first, values)

    def after_piece(written: int) -> None:
        nonlocal done
        done += written
        if progress is not None:
            progress(done, plan.bytes)

    on_device: list[Outcome] = []
    rest: Sequence[Task] = plan.tasks
    if plan.device != "cpu":
        from merging.device_tasks import merge_files_on_device, suits_device

        suited = [task for task in plan.tasks if suits_device(task)]
        rest = [task for task in plan.tasks if not suits_device(task)]
        on_device = merge_files_on_device(
            suited,
            keep,
            torch.device(plan.device),
            memory=plan.memory,
            after_piece=after_piece,
            after_window=writers.advance,
        )
    outcomes = on_device + merge_tasks(
        rest,
        keep,
        memory=plan.memory,
        threads=plan.threads,
        after_piece=after_piece,
        after_window=writers.advance,
    )
    places = {task.name: place for place, task in enumerate(plan.tasks)}
    return sorted(outcomes, key=lambda outcome: places[outcome.task.name])


def _weights_of(model: Checkpoint) -> list[Path]:
    own = Path(model.path)
    if own.is_file():
        return [own.resolve(), *(path.resolve() for path in weight_files(model.folder).values())]
    folders = dict.fromkeys((own, model.folder))
    return [path.resolve() for folder in folders for path in weight_files(folder).values()]
