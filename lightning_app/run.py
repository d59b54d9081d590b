"""The story of one run: base -> stages -> merges -> report."""

import time
from collections.abc import Mapping
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from sentence_transformers import SentenceTransformer
from torch import Tensor

from callbacks.geometry_retention import GeometryRetention
from callbacks.projection_plot import ProjectionPlot
from data.suites import broad_suite, paper_suite
from evaluation.suite_report import Effort
from lightning_app.cards import merge_sections, obstacle_of, stage_card
from lightning_app.completing import completing
from lightning_app.config import TrainConfig
from lightning_app.cross_fitting import cross_fit
from lightning_app.fingerprints import fingerprint_backbone
from lightning_app.fitting import fit_stage, load_stage
from lightning_app.ingredients import ingredients_of, one_path
from lightning_app.loading import pinned
from lightning_app.measurement import Measured, Measures, measure
from lightning_app.merges import RUN_MERGES, merge_run, note_of
from lightning_app.prefix import open_prefix, share_prefix
from lightning_app.preparation import Run, prepare
from lightning_app.presentation import announce, show_rows
from lightning_app.reference_rows import baseline_rows
from lightning_app.replicas import merges_of, replica_note
from lightning_app.reporting import write_all
from lightning_app.run_folder import check_folder
from lightning_app.selecting import selection_base, selection_score
from lightning_app.stages import StageData, read_run_data
from lightning_app.starting import start_run
from lightning_app.train_plan import plan_run
from models.adapter import adapter_state, load_adapter_weights
from models.backbones import lookup_backbone
from models.card import extend_card, licence_of
from models.embedder import count_tokens, load_embedder
from models.export import save_embedder
from models.loading import stored_dtype
from storage.atomic import building_folder
from storage.json_file import read_json, write_json
from storage.lock import folder_lock
from storage.manifest import verify_manifest, write_manifest


def train(config: TrainConfig) -> dict[str, Any]:
    """Carry out a run and write its folder (INTERFACE of a run folder: README, "What a run leaves").

    Args:
        config: Every setting; ``TrainConfig()`` is the main job on built-in parts.

    Returns:
        ``{"output": folder, "rows": [...]}``, the rows of report.json; without rows on ranks other than the first.

    Raises:
        ValueError: something that was asked is not possible; nothing has been written.
    """
    if config.plan:
        return plan_run(config)
    folder = Path(config.output)
    chief = getattr(rank_zero_only, "rank", 0) == 0
    backbone = cache(lambda: fingerprint_backbone(config))
    with folder_lock(folder) if chief else nullcontext():
        going_on = chief and check_folder(
            folder,
            config,
            resume=config.resume,
            overwrite=config.overwrite,
            backbone=backbone,
        )
        _announce_licence(config)
        run = prepare(config, read_run_data(config))
        if chief:
            start_run(folder, config, backbone(), going_on=going_on)
        return _carry_out(run, folder, chief=chief)


def _carry_out(run: Run, folder: Path, *, chief: bool) -> dict[str, Any]:
    """Base, stages, merges, report. Ranks other than the first take part in the stages only."""
    began = time.monotonic()
    run.prefix = open_prefix(run, folder)
    measured: list[Measured] = []
    if chief:
        measured.append(_measure(run, name="base", family="base"))
        base = _write_base(run, folder, measured[0])
    selection_base(run)
    stages: list[Path] = []
    scores: dict[str, float] = {}
    before: Mapping[str, Tensor] | None = None
    for stage in run.data.stages:
        if stage.replica is not None and before is not None:
            load_adapter_weights(run.embedder, before, source=f"weights before replica {stage.name}")
        elif stage.replica is not None or (run.config.cross_fit and stage is run.data.stages[-1]):
            before = adapter_state(run.embedder)
        stages.append(folder / "stages" / stage.name)
        if (stages[-1] / "manifest.json").is_file():
            announce(f"stage {stage.name}: finished before, taken from {stages[-1]}")
            load_stage(run, stages[-1])
        else:
            _fit(run, stage, folder, measured[0] if measured else None)
        if chief:
            family = "lora" if run.adapts else "encoder"
            note = replica_note(stage, run.config)
            measured.append(_measure(run, name=stage.name, family=family, base=measured[0], note=note))
            if stage.replica is not None:
                scores[stage.name] = selection_score(run, floor=stage.stage.retention_floor)
    if run.config.cross_fit and before is not None:
        unseen = cross_fit(run, folder, before, chief=chief)
        if unseen is not None:
            about = _precision_note(run, trained=True)
            measured.append(Measured(row=unseen | ({} if about is None else {"note": about}), embeddings={}))
    if not chief:
        return {"output": str(folder)}
    run.embedder.to("cpu")  # one large model at a time on the device
    complete = completing(row=lookup_backbone(pinned(run.config.backbone)[0]), bidirectional=run.config.bidirectional)
    ingredients = ingredients_of(run, base, stages, scores)
    for name in dict.fromkeys((*merges_of(run.config), *_needed(run))):
        report = merge_run(name, ingredients, folder / "merged" / name, complete=complete)
        if report is None:
            announce(f"merge {name}: left out, it needs two stages{', and texts to choose by' * (name == 'search')}")
            continue
        merged = load_embedder(folder / "merged" / name)
        share_prefix(run, merged, folder)
        row, note = RUN_MERGES[name], note_of(name, report, ingredients)
        measured.append(_measure(run, name=name, family=row.family, base=measured[0], embedder=merged, note=note))
        extend_card(folder / "merged" / name, merge_sections(run, measured[-1].row))
    return _report(run, folder, measured, one_path(run, stages, ingredients.last), seconds=time.monotonic() - began)


def _needed(run: Run) -> list[str]:
    """The whole folder that a run leaves where plain PEFT cannot load its adapters; trained Dense modules are in no merge."""
    obstacle = obstacle_of(run)
    if obstacle is None or run.config.lora.dense == "train":
        return []
    announce(f"merge last: added, because plain PEFT cannot load the adapters: {obstacle}")
    return ["last"]


def _announce_licence(config: TrainConfig) -> None:
    """One line where the base comes with terms that bind what is made of it."""
    name = pinned(config.backbone)[0]
    row, folder = lookup_backbone(name), Path(name).expanduser()
    licence = licence_of(folder if row is None and folder.is_dir() else None, row)
    if licence.restricted:
        announce(f"{row.name if row is not None else folder}: {licence.text}")


def _measure(
    run: Run,
    *,
    name: str,
    family: str,
    base: Measured | None = None,
    embedder: SentenceTransformer | None = None,
    note: str | None = None,
) -> Measured:
    """The row of a model of the run: of ``embedder``, or of the run's own as it is now."""
    announce(f"measuring {name}")
    return measure(
        lambda texts: run.encode(texts, embedder),
        name=name,
        family=family,
        prompt=run.prompt,
        measures=_measures(run),
        base=base,
        count_tokens=lambda texts: count_tokens(embedder or run.embedder, texts),
        note="; ".join(filter(None, (note, _precision_note(run, trained=embedder is None)))) or None,
    )


def _precision_note(run: Run, *, trained: bool) -> str | None:
    """On which base a row was measured, where the run's is in few bits or in another precision than it is stored in."""
    kind: str | None = run.config.lora.quantization
    if kind == "none":
        kind = run.config.dtype
    if kind is None or run.base is None or kind == stored_dtype(run.base):
        return None
    if trained:
        return f"measured on the base in {kind}"
    return f"measured on the base as it is stored, retention against the base in {kind}"


def _measures(run: Run) -> Measures:
    return Measures(
        paper=paper_suite(),
        broad=broad_suite(),
        reported=run.suites,
        effort=Effort(permutations=run.config.permutations, draws=run.config.draws),
        seed=run.config.seed,
    )


def _write_base(run: Run, folder: Path, measured: Measured) -> Path:
    """Stage 0: metrics and manifest, and the weights of a model that has no folder yet. Returns the base's folder."""
    target = folder / "stages" / "0-base"
    if (target / "manifest.json").is_file():
        verify_manifest(target)
        return run.base or target
    about: dict[str, Any] = {"stage": "0-base", "backbone": run.config.backbone, "seed": run.config.seed}
    if run.base is None:
        card = stage_card(run, "0-base", row=measured.row)
        return save_embedder(
            run.embedder, target, extra_manifest=about, json_files={"metrics.json": measured.row}, card=card
        )
    with building_folder(target) as building:
        write_json(building / "metrics.json", measured.row)
        write_manifest(building, **about)
    return run.base


def _fit(run: Run, stage: StageData, folder: Path, base: Measured | None) -> None:
    """Train one stage, with the curves of the paper's suite and of retention."""
    paper, broad = paper_suite(), broad_suite()
    reference = base.embeddings["broad"] if base is not None else run.encode(broad.texts)
    fit_stage(
        run,
        stage,
        folder / "stages" / stage.name,
        folder=folder,
        suites={"paper": paper},
        observers=[
            GeometryRetention(broad.texts, reference),
            ProjectionPlot("paper", paper, paper.families, seed=run.config.seed),
        ],
    )


def _report(run: Run, folder: Path, measured: list[Measured], stages: list[Path], *, seconds: float) -> dict[str, Any]:
    """report.json / md / html, and the table in the terminal."""
    if run.config.baselines:
        announce("measuring the baselines")
        measured = [*measured, *baseline_rows(_measures(run))]
    rows = [each.row for each in measured]
    context = {
        "backbone": run.config.backbone,
        "seed": run.config.seed,
        "stages": [stage.name for stage in run.data.stages],
        "seconds": round(seconds, 1),
    }
    write_all(
        folder,
        measured,
        rows,
        _measures(run),
        title=f"embarc: {run.config.backbone}",
        context=context,
        revision=f"seed-{run.config.seed}",
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
