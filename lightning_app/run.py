"""The story of one run: base -> stages -> merges -> report."""

import time
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from sentence_transformers import SentenceTransformer

from callbacks.clustering_metrics import ClusteringMetrics
from callbacks.geometry_retention import GeometryRetention
from callbacks.projection_plot import ProjectionPlot
from callbacks.stage_checkpoint import StageCheckpoint
from data.datamodule import LabelledDataModule
from data.suites import broad_suite, paper_suite
from lightning_app.config import TrainConfig
from lightning_app.measurement import Measured, draw_projection, measure
from lightning_app.merges import RUN_MERGES, merge_run, note_of
from lightning_app.module import ContrastiveEmbedder
from lightning_app.preparation import Run, prepare
from lightning_app.presentation import announce, log_row, show_rows
from lightning_app.run_folder import check_folder, environment, make_folder
from lightning_app.stages import StageData, read_run_data
from lightning_app.trainer import MONITOR, build_trainer
from models.adapter import adapter_state, load_adapter_weights
from models.embedder import load_embedder, reads_last_token
from models.export import check_adapter_roundtrip, save_adapter, save_embedder, save_tokenizer
from storage.atomic import building_folder
from storage.json_file import read_json, write_json
from storage.lock import folder_lock
from storage.manifest import verify_manifest, write_manifest
from storage.tensor_file import read_tensors


def train(config: TrainConfig) -> dict[str, Any]:
    """Carry out a run and write its folder (INTERFACE of a run folder: README, "What a run leaves").

    Args:
        config: Every setting; ``TrainConfig()`` is the main job on built-in parts.

    Returns:
        ``{"output": folder, "rows": [...]}``, the rows of report.json; without rows on ranks other than the first.

    Raises:
        ValueError: something that was asked is not possible; nothing has been written.
    """
    folder = Path(config.output)
    chief = getattr(rank_zero_only, "rank", 0) == 0
    with folder_lock(folder) if chief else nullcontext():
        going_on = chief and check_folder(folder, config.to_dict(), resume=config.resume, overwrite=config.overwrite)
        run = prepare(config, read_run_data(config))
        if chief and not going_on:
            make_folder(folder, config.to_dict())
            write_json(folder / "environment.json", environment())
        return _carry_out(run, folder, chief=chief)


def _carry_out(run: Run, folder: Path, *, chief: bool) -> dict[str, Any]:
    """Base, stages, merges, report. Ranks other than the first take part in the stages only."""
    began = time.monotonic()
    measured: list[Measured] = []
    if chief:
        measured.append(_measure(run, folder, name="base", family="base"))
        base = _write_base(run, folder, measured[0])
    stages: list[Path] = []
    for stage in run.data.stages:
        stages.append(folder / "stages" / stage.name)
        if (stages[-1] / "manifest.json").is_file():
            announce(f"stage {stage.name}: finished before, taken from {stages[-1]}")
            _load_stage(run, stages[-1])
        else:
            _fit(run, stage, folder, measured[0] if measured else None)
        if chief:
            family = "lora" if run.adapts else "encoder"
            measured.append(_measure(run, folder, name=stage.name, family=family, base=measured[0]))
    if not chief:
        return {"output": str(folder)}
    run.embedder.to("cpu")  # one large model at a time on the device
    complete = partial(save_tokenizer, run.embedder) if reads_last_token(run.embedder) else None
    for name in dict.fromkeys(run.config.merges):
        report = merge_run(name, base=base, stages=stages, output=folder / "merged" / name, complete=complete)
        if report is None:
            announce(f"merge {name}: left out, it needs two stages")
            continue
        merged = load_embedder(folder / "merged" / name)
        row, note = RUN_MERGES[name], note_of(name, report)
        measured.append(
            _measure(run, folder, name=name, family=row.family, base=measured[0], embedder=merged, note=note)
        )
    return _report(run, folder, measured, stages, seconds=time.monotonic() - began)


def _measure(
    run: Run,
    folder: Path,
    *,
    name: str,
    family: str,
    base: Measured | None = None,
    embedder: SentenceTransformer | None = None,
    note: str | None = None,
) -> Measured:
    """A row and its picture."""
    announce(f"measuring {name}")
    found = measure(
        lambda texts: run.encode(texts, embedder),
        name=name,
        family=family,
        prompt=run.prompt,
        suites=run.suites,
        base=base,
        seed=run.config.seed,
        note=note,
    )
    (folder / "projections").mkdir(exist_ok=True)
    draw_projection(found, folder / "projections" / f"{name}.png", seed=run.config.seed)
    if base is None or embedder is not None:
        # a stage has its curves; the base and the merges are single points beside them
        log_row(folder / "tensorboard" / name, found.row)
    return found


def _write_base(run: Run, folder: Path, measured: Measured) -> Path:
    """Stage 0: metrics and manifest, and the weights of a model that has no folder yet. Returns the base's folder."""
    target = folder / "stages" / "0-base"
    if (target / "manifest.json").is_file():
        verify_manifest(target)
        return run.base or target
    about: dict[str, Any] = {"stage": "0-base", "backbone": run.config.backbone, "seed": run.config.seed}
    if run.base is None:
        return save_embedder(run.embedder, target, extra_manifest=about, json_files={"metrics.json": measured.row})
    with building_folder(target) as building:
        write_json(building / "metrics.json", measured.row)
        write_manifest(building, **about)
    return run.base


def _load_stage(run: Run, stage: Path) -> None:
    """Go on from a finished stage's weights."""
    verify_manifest(stage)
    weights = stage / ("adapter_model.safetensors" if run.adapts else "model.safetensors")
    if run.adapts:
        load_adapter_weights(run.embedder, read_tensors(weights), source=str(weights))
    else:
        load_adapter_weights(run.embedder, adapter_state(load_embedder(stage)), source=str(weights))


def _fit(run: Run, stage: StageData, folder: Path, base: Measured | None) -> None:
    """Train one stage from the weights that the embedder has now, and leave its best epoch's in it."""
    config, settings = run.config, stage.stage
    texts, labels = len(stage.data.texts), len(set(stage.data.labels))
    announce(f"stage {stage.name}: {texts} texts, {labels} labels, batches of {stage.classes} x {stage.per_class}")
    steps = settings.epochs * settings.steps_per_epoch
    module = ContrastiveEmbedder(
        run.embedder,
        learning_rate=settings.learning_rate,
        total_steps=steps if config.max_steps < 0 else min(steps, config.max_steps),
        temperature=config.temperature,
        seed=config.seed,
    )
    paper, broad = paper_suite(), broad_suite()
    suites = {"paper": paper} | ({"selection": run.data.selection} if run.data.selection else {})
    reference = base.embeddings["broad"] if base is not None else run.encode(broad.texts)
    callbacks = [
        ClusteringMetrics(suites, seed=config.seed),
        GeometryRetention(broad.texts, reference),
        ProjectionPlot("paper", paper, paper.families, seed=config.seed),
        StageCheckpoint(
            lambda metrics: _save_stage(run, stage, folder, metrics), monitor=MONITOR if run.data.selection else None
        ),
    ]
    trainer = build_trainer(
        config, settings, folder=folder, name=stage.name, callbacks=callbacks, selects=run.data.selection is not None
    )
    data = LabelledDataModule(
        stage.data,
        classes=stage.classes,
        per_class=stage.per_class,
        batches=settings.steps_per_epoch,
        seed=config.seed,
        collate=module.collate,
    )
    state = folder / "resume" / stage.name
    run.embedder.train()
    trainer.fit(module, datamodule=data, ckpt_path=str(state) if config.resume and state.is_dir() else None)


def _save_stage(run: Run, stage: StageData, folder: Path, metrics: dict[str, Any]) -> None:
    """The stage's folder; what the selection suite said chose the epoch, so it is left out of what is kept to be read."""
    epochs = [
        {k: v for k, v in epoch.items() if not k.startswith("selection/") and v == v} for epoch in metrics["epochs"]
    ]
    target = folder / "stages" / stage.name
    about = {
        "stage": stage.name,
        "backbone": run.config.backbone,
        "seed": run.config.seed,
        "families": list(stage.stage.families),
    }
    files = {"metrics.json": metrics | {"epochs": epochs}}
    if not run.adapts:
        save_embedder(run.embedder, target, extra_manifest=about, json_files=files)
        return
    assert run.base is not None
    save_adapter(
        run.embedder,
        target,
        base_name=run.config.backbone,
        base_folder=run.base,
        extra_manifest=about,
        json_files=files,
    )
    check_adapter_roundtrip(target, run.embedder, stage.data.texts[:4])


def _report(run: Run, folder: Path, measured: list[Measured], stages: list[Path], *, seconds: float) -> dict[str, Any]:
    """report.json / md / html, and the table in the terminal."""
    from evaluation.report import write_report

    rows = [each.row for each in measured]
    context = {
        "backbone": run.config.backbone,
        "seed": run.config.seed,
        "stages": [stage.name for stage in run.data.stages],
        "seconds": round(seconds, 1),
    }
    write_report(
        folder,
        rows,
        title=f"embarc: {run.config.backbone}",
        context=context,
        projections={row["name"]: folder / "projections" / f"{row['name']}.png" for row in rows},
        curves=_curves(rows[0], stages),
    )
    show_rows(rows, title=f"{run.config.backbone}: {folder / 'report.html'}")
    return {"output": str(folder), "rows": rows}


def _curves(base: Mapping[str, Any], stages: list[Path]) -> dict[str, list[tuple[float, float]]]:
    """Two curves over all steps of the run: separation on the paper's suite, and CKA to the base."""
    separation = [] if base["silhouette_true"] is None else [(0.0, float(base["silhouette_true"]))]
    kept = [(0.0, 1.0)]
    offset = 0.0
    for stage in stages:
        epochs = read_json(stage / "metrics.json")["epochs"]
        separation += [(offset + e["step"], e["paper/silhouette_true"]) for e in epochs if "paper/silhouette_true" in e]
        kept += [(offset + e["step"], e["retention/cka"]) for e in epochs if "retention/cka" in e]
        offset += epochs[-1]["step"] if epochs else 0
    return {"silhouette, the paper's 24, by step": separation, "CKA to the base, by step": kept}
