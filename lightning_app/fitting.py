"""Training one stage, and the folder that it leaves."""

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from callbacks.clustering_metrics import ClusteringMetrics
from callbacks.stage_checkpoint import StageCheckpoint
from callbacks.weight_average import Returned, WeightAverage
from data.datamodule import LabelledDataModule
from data.suites import Suite
from lightning_app.cards import stage_card
from lightning_app.config import TrainConfig
from lightning_app.module import ContrastiveEmbedder
from lightning_app.objective import Objective, objective
from lightning_app.prefix import autocast_of, with_states
from lightning_app.preparation import Run
from lightning_app.presentation import announce
from lightning_app.resuming import fit
from lightning_app.selecting import selection_base
from lightning_app.stages import StageData
from lightning_app.trainer import MONITOR, build_trainer
from models.adapter import adapter_state, load_adapter_weights
from models.dense import read_dense
from models.embedder import load_embedder
from models.export import check_adapter_roundtrip, save_adapter, save_embedder
from models.prefix_pass import lowest_trained_block, quiet_prefix
from storage.manifest import verify_manifest
from storage.tensor_file import read_tensors


def fit_stage(
    run: Run,
    stage: StageData,
    target: Path,
    *,
    folder: Path,
    suites: Mapping[str, Suite],
    observers: Sequence[Callback] = (),
) -> None:
    """Train one stage from the weights that the embedder has now, and leave its best epoch's in it.

    Args:
        run: Whose embedder is trained.
        stage: Texts, shape of a batch, settings; its name is that of its curves and of its state for a resume.
        target: Folder of the stage, written at its end.
        folder: Of the run.
        suites: Measured after every epoch, beside the one that chooses the epoch.
        observers: Further callbacks, called before the epoch's weights are kept.
    """
    config, settings, selection = run.config, stage.stage, run.data.selection
    seed = config.seed if stage.seed is None else stage.seed
    texts, labels = len(stage.data.texts), len(set(stage.data.labels))
    kind = "pairs" if stage.data.in_pairs else "labels"
    announce(f"stage {stage.name}: {texts} texts, {labels} {kind}, batches of {stage.classes} x {stage.per_class}")
    steps = settings.epochs * settings.steps_per_epoch
    module = ContrastiveEmbedder(
        run.embedder,
        learning_rate=settings.learning_rate,
        total_steps=steps if config.max_steps < 0 else min(steps, config.max_steps),
        temperature=config.temperature,
        seed=seed,
        objective=_objective(run, stage),
        batching=config.batching,
        token_budget=config.token_budget,
    )
    if config.num_workers > 0 or (config.ranks > 1 and run.device.type == "cuda"):
        # processes that make batches ready find them read, and a trial of memory knows the longest; else a text is read when it is drawn
        module.tokenise(stage.data.texts)
    measured = dict(suites) | ({"selection": selection} if selection else {})
    averages = averaging(config, total_steps=module.total_steps)
    callbacks = [
        *averages,
        ClusteringMetrics(measured, seed=config.seed, base_embeddings=selection_base(run)),
        *observers,
        StageCheckpoint(
            lambda metrics: _save_stage(run, stage, target, metrics),
            monitor=MONITOR if selection else None,
            floor=settings.retention_floor,
        ),
        *(Returned(average) for average in averages),
    ]
    trainer = build_trainer(
        config,
        settings,
        folder=folder,
        name=stage.name,
        callbacks=callbacks,
        selects=selection is not None,
        texts=stage.data.texts,
    )
    data = LabelledDataModule(
        stage.data,
        classes=stage.classes,
        per_class=stage.per_class,
        batches=settings.steps_per_epoch,
        seed=seed,
        collate=with_states(module.collate, run.prefix, autocast=autocast_of(config)),
        num_workers=config.num_workers,
    )
    run.embedder.train()
    if config.adapt_top is not None and run.adapts:
        quiet_prefix(run.embedder, lowest_trained_block(run.embedder))
    fit(trainer, module, data, state=folder / "resume" / stage.name, resume=config.resume)
    if run.prefix is not None:
        run.prefix.store.refresh()  # forked ranks have kept more


def _objective(run: Run, stage: StageData) -> Objective:
    """The stage's loss; the base's embeddings that it may need are computed where the run computes."""
    if run.config.geometry_weight > 0 and run.config.strategy != "ddp_fork":
        run.embedder.to(run.device)  # a process that is forked later must not have touched a GPU
    return objective(run.config, stage.data, run.embedder)


def averaging(config: TrainConfig, *, total_steps: int) -> list[WeightAverage]:
    """The average that the run asks for: one callback or none."""
    if config.average == "none":
        return []
    return [WeightAverage(config.average, total_steps=total_steps, decay=config.ema_decay)]


def _save_stage(run: Run, stage: StageData, target: Path, metrics: dict[str, Any]) -> None:
    """The stage's folder; what the selection suite said chose the epoch, so it is left out of what is kept to be read."""
    epochs = [
        {k: v for k, v in epoch.items() if not k.startswith("selection/") and math.isfinite(v)}
        for epoch in metrics["epochs"]
    ]
    about = {
        "stage": stage.name,
        "backbone": run.config.backbone,
        "seed": run.config.seed,
        "families": list(stage.stage.families),
    }
    files = {"metrics.json": metrics | {"epochs": epochs}}
    if metrics.get("retention_floor_reached") is False:
        announce(
            f"stage {stage.name}: no epoch keeps --stages.N.retention-floor {stage.stage.retention_floor:g}; epoch "
            f"{metrics['best_epoch']}, which keeps most, is taken; lower the learning rate or the floor"
        )
    card = stage_card(run, stage.name, metrics=files["metrics.json"])
    if not run.adapts:
        save_embedder(run.embedder, target, extra_manifest=about, json_files=files, card=card)
        return
    assert run.base is not None
    save_adapter(
        run.embedder,
        target,
        base_name=run.config.backbone,
        base_folder=run.base,
        extra_manifest=about,
        json_files=files,
        card=card,
        bidirectional=run.config.bidirectional,
    )
    try:
        check_adapter_roundtrip(target, run.embedder, stage.data.texts[:4])
    except ValueError:
        shutil.rmtree(target)  # --resume would take it for a finished stage
        raise


def load_stage(run: Run, stage: Path) -> None:
    """Go on from a finished stage's weights."""
    verify_manifest(stage)
    weights = stage / ("adapter_model.safetensors" if run.adapts else "model.safetensors")
    if run.adapts:
        load_adapter_weights(run.embedder, read_tensors(weights) | read_dense(stage), source=str(weights))
    else:
        load_adapter_weights(run.embedder, adapter_state(load_embedder(stage)), source=str(weights))
