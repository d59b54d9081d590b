"""Training one stage, and the folder that it leaves."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from callbacks.clustering_metrics import ClusteringMetrics
from callbacks.stage_checkpoint import StageCheckpoint
from data.datamodule import LabelledDataModule
from data.suites import Suite
from lightning_app.cards import stage_card
from lightning_app.module import ContrastiveEmbedder
from lightning_app.preparation import Run
from lightning_app.presentation import announce
from lightning_app.stages import StageData
from lightning_app.trainer import MONITOR, build_trainer
from models.adapter import adapter_state, load_adapter_weights
from models.dense import read_dense
from models.embedder import load_embedder
from models.export import check_adapter_roundtrip, save_adapter, save_embedder
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
    texts, labels = len(stage.data.texts), len(set(stage.data.labels))
    announce(f"stage {stage.name}: {texts} texts, {labels} labels, batches of {stage.classes} x {stage.per_class}")
    steps = settings.epochs * settings.steps_per_epoch
    module = ContrastiveEmbedder(
        run.embedder,
        learning_rate=settings.learning_rate,
        total_steps=steps if config.max_steps < 0 else min(steps, config.max_steps),
        temperature=config.temperature,
        seed=config.seed,
        batching=config.batching,
        token_budget=config.token_budget,
    )
    module.tokenise(stage.data.texts)
    measured = dict(suites) | ({"selection": selection} if selection else {})
    callbacks = [
        ClusteringMetrics(measured, seed=config.seed),
        *observers,
        StageCheckpoint(
            lambda metrics: _save_stage(run, stage, target, metrics), monitor=MONITOR if selection else None
        ),
    ]
    trainer = build_trainer(
        config, settings, folder=folder, name=stage.name, callbacks=callbacks, selects=selection is not None
    )
    data = LabelledDataModule(
        stage.data,
        classes=stage.classes,
        per_class=stage.per_class,
        batches=settings.steps_per_epoch,
        seed=config.seed,
        collate=module.collate,
        num_workers=config.num_workers,
    )
    state = folder / "resume" / stage.name
    run.embedder.train()
    trainer.fit(module, datamodule=data, ckpt_path=str(state) if config.resume and state.is_dir() else None)


def _save_stage(run: Run, stage: StageData, target: Path, metrics: dict[str, Any]) -> None:
    """The stage's folder; what the selection suite said chose the epoch, so it is left out of what is kept to be read."""
    epochs = [
        {k: v for k, v in epoch.items() if not k.startswith("selection/") and v == v} for epoch in metrics["epochs"]
    ]
    about = {
        "stage": stage.name,
        "backbone": run.config.backbone,
        "seed": run.config.seed,
        "families": list(stage.stage.families),
    }
    files = {"metrics.json": metrics | {"epochs": epochs}}
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
