"""``python train.py --plan``: what a run would train, hold in memory, take in steps and leave on disk; nothing is started."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.folds import paper_folds
from data.sampler import LabelBatchSampler
from lightning_app.config import TrainConfig
from lightning_app.loading import pinned
from lightning_app.merges import RUN_MERGES
from lightning_app.plan_tokenizer import plan_tokenizer, prompt_of
from lightning_app.replicas import merges_of
from lightning_app.run_memory import run_memory, run_sizes
from lightning_app.stages import StageData, read_run_data
from lightning_app.train_plan_text import train_plan_text
from merging.companions import companion_files
from models.backbones import Backbone, lookup_backbone
from models.carrying import adapter_obstacle
from models.locate import UnreachableModel, base_folder
from models.origin import row_of
from models.partition import partition
from models.shapes import shape_folder
from models.sizes import ModelSizes
from models.training_memory import CAST_TO
from models.wire_bytes import wire_bytes
from storage.manifest import weight_files

BATCHES = 200
"""Batches of the first epoch whose tokens are counted; more are as many times their mean."""
BESIDES = 3
"""Tokens that a tokenizer may add to those of a text: its begin, its end, and a space in front."""


def plan_run(config: TrainConfig) -> dict[str, Any]:
    """Describe the run that ``config`` asks for, and print it (unless ``--json`` does); writes nothing, fetches nothing.

    The model is counted by its config.json, the tokens by its tokenizer in the run's own batches. A name of BACKBONES whose files
    are not on this machine (``rough``) is counted by the shape that is written down for it, and its tokens are at most the bytes of
    the texts. ``--pickled-weights`` may leave the safetensors copy that the run would make in the cache.

    Returns:
        ``backbone, folder, rough, parameters, dtype, quantization, trainable, trainable_share, adapted, precision, devices,
        strategy, gradient_checkpointing, stages, steps, tokens, memory`` (bytes a device, see `run_memory`), ``wire`` (bytes a
        step that a device receives, see `wire_bytes`), ``disk`` (bytes),
        ``notes``; None for what is not known.

    Raises:
        ValueError: what a run refuses of its data and settings too; a hub id without a row that is not on this machine.
    """
    data = read_run_data(config)
    folder, row = _located(config)
    rough = folder is None and row is not None and not row.from_scratch
    tokenizer = _bytes_as_tokens if rough else plan_tokenizer(folder, row)
    stages = [*data.stages, *_folds(config, data.stages[-1])]
    planned = [_stage_plan(each, config, tokenizer, prompt_of(folder)) for each in stages]
    described: dict[str, Any] = {
        "backbone": config.backbone,
        "folder": None if folder is None else str(folder),
        "rough": rough,
        "quantization": config.lora.quantization,
        "precision": config.precision,
        "devices": config.ranks,
        "strategy": "one device" if config.ranks == 1 else "fsdp" if config.strategy == "fsdp" else "ddp",
        "gradient_checkpointing": config.gradient_checkpointing,
        "stages": planned,
        "steps": sum(each["steps"] for each in planned),
        "tokens": None if tokenizer is None else sum(each["tokens"] for each in planned),
    }
    merged: int | None
    if rough:
        assert row is not None, "only a row has a shape"
        with shape_folder(row) as shape:
            sizes = run_sizes(config, shape, row)
        merged = sizes.stored_bytes
    else:
        sizes = run_sizes(config, folder, row)
        merged = None if folder is None else _folder_bytes(folder)
    described |= _counted(config, sizes, planned, merged, _merges(config, folder, stages=len(data.stages)))
    described["notes"] = _notes(described, config, tokenizer)
    if not config.json:
        print(train_plan_text(described))
    return described


def _located(config: TrainConfig) -> tuple[Path | None, Backbone | None]:
    """The model's folder (None: drawn from its seed, or to be planned by its row alone), and its row."""
    name, revision = pinned(config.backbone)
    row = lookup_backbone(name)
    if row is not None and row.from_scratch:
        return None, row
    try:
        folder = base_folder(
            name,
            revision=revision,
            cache=config.cache,
            offline=True,
            pickled_weights=config.pickled_weights,
            code=config.trust_remote_code,
            verify=False,
        )
        return folder, row or row_of(folder)
    except UnreachableModel as error:
        if row is not None:
            return None, row
        raise UnreachableModel(
            f"--plan: expected a model on this machine or a name of BACKBONES, got {config.backbone}, which is not in the cache; "
            "give a local folder or a filled --cache, or leave --plan out to fetch it"
        ) from error


def _bytes_as_tokens(texts: Sequence[str], **_: Any) -> dict[str, list[range]]:
    """At most so many tokens, whatever the tokenizer."""
    return {"input_ids": [range(len(text.encode()) + BESIDES) for text in texts]}


def _merges(config: TrainConfig, folder: Path | None, *, stages: int) -> list[str]:
    """The merges that a run leaves: those asked for, where there are stages enough, and ``last`` where plain PEFT needs it."""
    added = ["last"] if folder is not None and adapter_obstacle(folder, bidirectional=config.bidirectional) else []
    names = dict.fromkeys((*merges_of(config), *(added if config.lora.dense == "freeze" else [])))
    return [name for name in names if RUN_MERGES[name].of != "stages" or stages > 1]


def _folds(config: TrainConfig, last: StageData) -> list[StageData]:
    """The fits of ``--cross-fit``: the last stage's settings on half of the paper's windows."""
    if not config.cross_fit:
        return []
    folds = []
    for fold in paper_folds(config.cross_fit):
        families = len(set(fold.training.labels))
        size = len(fold.training.texts) // families
        name = f"cross-fit-{fold.name}"
        folds.append(StageData(stage=last.stage, name=name, data=fold.training, classes=families, per_class=size))
    return folds


def _stage_plan(stage: StageData, config: TrainConfig, tokenizer: Any, prompt: str) -> dict[str, Any]:
    """Steps of a stage, and the tokens of its batches: of the first epoch's, which stand for all."""
    settings, texts = stage.stage, list(stage.data.texts)
    steps = settings.epochs * settings.steps_per_epoch
    steps = steps if config.max_steps < 0 else min(steps, config.max_steps)
    plan: dict[str, Any] = {
        "name": stage.name,
        "texts": len(texts),
        "labels": len(set(stage.data.labels)),
        "classes": stage.classes,
        "texts_per_class": stage.per_class,
        "epochs": settings.epochs,
        "steps_per_epoch": settings.steps_per_epoch,
        "steps": steps,
        "tokens": None,
        "padding_share": None,
        "parts": None,
        "longest": None,
    }
    if tokenizer is None:
        return plan
    read = tokenizer([prompt + text for text in texts], truncation=False, verbose=False)["input_ids"]
    lengths = [len(ids) for ids in read]
    batches = min(BATCHES, settings.steps_per_epoch, steps)
    used = padded = parts = 0
    for rank in range(config.ranks):
        sampler = LabelBatchSampler(
            stage.data.labels,
            classes=stage.classes,
            per_class=stage.per_class,
            batches=batches,
            seed=config.seed if stage.seed is None else stage.seed,
            blocks=stage.data.blocks,
            rank=rank,
            world_size=config.ranks,
        )
        for batch in sampler:
            cut = _cut([lengths[i] for i in batch], config)
            used += sum(lengths[i] for i in batch)
            padded += sum(each["padded"] for each in cut)
            parts += len(cut)
    return plan | {
        "tokens": round(used * steps / batches),
        "padding_share": 1 - used / padded,
        "parts": parts / (batches * config.ranks),
        "longest": max(lengths),
    }


def _cut(lengths: Sequence[int], config: TrainConfig) -> list[dict[str, int]]:
    """The parts of one rank's share of a batch, as `lightning_app.batch.make_parts` cuts it, and their tokens with padding."""
    together = config.batching == "padded" and config.token_budget is None
    cut = [list(range(len(lengths)))] if together else partition(lengths, budget=config.token_budget)
    packed = config.batching == "packed"
    return [
        {"padded": sum(lengths[i] for i in part) if packed else len(part) * max(lengths[i] for i in part)}
        for part in cut
    ]


def _counted(
    config: TrainConfig,
    sizes: ModelSizes,
    planned: Sequence[Mapping[str, Any]],
    merged: int | None,
    merges: Sequence[str],
) -> dict[str, Any]:
    """What the model's shape and its files tell; ``merged``: bytes of a merge, None where there is no adapter to be small."""
    batches = [(each["classes"] * each["texts_per_class"] // config.ranks, each["longest"] or 0) for each in planned]
    counted = run_memory(config, sizes, batches)
    memory: dict[str, int | None] = dict(counted)
    if planned[0]["longest"] is None:
        memory |= {"activations": None, "peak": None}
    trained = sizes.trainable * CAST_TO.get(config.precision, 4)
    adapter = trained + sizes.header_bytes
    whole = adapter if merged is None else merged
    adapts = sizes.adapted > 0
    return {
        "parameters": sizes.parameters,
        "dtype": str(sizes.dtype).removeprefix("torch."),
        "trainable": sizes.trainable,
        "trainable_share": sizes.trainable
        / (sizes.parameters + (sizes.trainable - sizes.trained_dense if adapts else 0)),
        "adapted": sizes.adapted,
        "memory": memory,
        "wire": _wire(config, sizes, planned),
        "disk": _disk(
            base=0 if adapts else whole,
            stage=adapter,
            resume=4 * trained,
            fits=len(planned),
            merges=dict.fromkeys(merges, whole),
        ),
    }


def _wire(config: TrainConfig, sizes: ModelSizes, planned: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Bytes that a device receives in a step of the stage that sends most."""
    every = [
        wire_bytes(
            sizes,
            texts=each["classes"] * each["texts_per_class"] // config.ranks,
            devices=config.ranks,
            strategy="fsdp" if config.strategy == "fsdp" else "ddp",
            parts=math.ceil(each["parts"] or 1),
            recomputed=config.token_budget is not None,
        )
        for each in planned
    ]
    return max(every, key=lambda each: each["total"])


def _disk(*, base: int, stage: int, resume: int, fits: int, merges: dict[str, int]) -> dict[str, Any]:
    """Bytes of a run's folder; the trained weights, AdamW's two averages and the best epoch's weights stay for ``--resume``."""
    total = base + fits * (stage + resume) + sum(merges.values())
    return {"base": base, "stages": fits * stage, "resume": fits * resume, "merges": merges, "total": total}


def _folder_bytes(folder: Path) -> int:
    """A merge of a folder: its weights again, and what it carries over."""
    files = [*weight_files(folder).values(), *(folder / name for name in companion_files(folder))]
    return sum(path.stat().st_size for path in files)


def _notes(plan: Mapping[str, Any], config: TrainConfig, tokenizer: Any) -> list[str]:
    notes = []
    if plan["rough"]:
        notes.append(
            "rough: the model is not on this machine; counted by the shape written down for it, and by a token a byte of text: "
            "tokens, activations and peak are at most these"
        )
    elif tokenizer is None:
        notes.append(
            "no tokenizer in the folder: tokens, padding and activations are unknown, and a run will refuse it"
        )
    else:
        notes += [
            f"{each['name']}: a run will refuse a text of {each['longest']} tokens, the model reads {tokenizer.model_max_length}"
            for each in plan["stages"]
            if each["longest"] > tokenizer.model_max_length
        ]
        notes.append("activations are an estimate; CUDA's context, the measurements and Python come on top")
    if plan["tokens"] is not None:
        notes.append("tokens: by the batches of the first epoch; a stage ends earlier when its silhouette stops rising")
    if config.replicas > 1:
        notes.append(f"{config.replicas} replicas of the last stage, one after another, over one base in memory")
    notes.append("disk: weights and their companions; reports, curves and pictures come on top")
    if config.adapt_top is not None and config.prefix_cache and config.batching != "packed":
        notes.append(
            "disk: the prefix cache comes on top: tokens x width x bytes of a number for each text that is read"
        )
    if config.merges and config.lora.quantization != "none":
        notes.append("merges take the base as it is stored, and are measured so: the base whole and in full precision")
    if plan["strategy"] == "fsdp":
        notes.append(
            "every device holds its share of the model, and its process the whole model in CPU memory; base, stages and merges are "
            "measured whole, on the first device"
        )
    elif config.ranks > 1:
        notes.append("every device holds the whole model")
    return notes
