"""What the model cards of a run say: data, settings, and metrics with what they were measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning_app.config import TrainConfig
from lightning_app.loading import pinned
from lightning_app.objective_settings import describe_objective
from lightning_app.preparation import Run
from lightning_app.stages import StageData
from models.backbones import lookup_backbone
from models.card import embedder_card, licence_of, table
from models.carrying import adapter_obstacle
from models.locate import hub_origin

MEASURED_ON = {
    "paper": "the paper's 24 windows, embedded by the best epoch's weights",
    "retention": "suite broad, against the base's embeddings",
    "train": "batches of the stage, last step of the epoch",
}
"""What the metrics of an epoch were measured on, by the first part of their names."""
COLUMNS = ("silhouette_true", "davies_bouldin_true", "silhouette_kmeans", "davies_bouldin_kmeans")


def obstacle_of(run: Run) -> str | None:
    """Why plain PEFT cannot carry the run's adapters; None where it can, and where there is no adapter."""
    if not run.adapts or run.base is None:
        return None
    if run.config.lora.dense == "train":
        return "a PEFT adapter holds no Dense modules, and those of this stage were trained"
    return adapter_obstacle(run.base, bidirectional=run.config.bidirectional)


def stage_card(
    run: Run, name: str, *, metrics: Mapping[str, Any] | None = None, row: Mapping[str, Any] | None = None
) -> str:
    """README.md of a stage's folder.

    Args:
        run: whose stages up to `name` are told.
        name: of the folder; ``0-base`` has seen no data.
        metrics: of the stage's epochs, as metrics.json has them.
        row: of the report, for a model that is measured by one.
    """
    obstacle = obstacle_of(run)
    origin = hub_origin(run.base) if run.base is not None else None
    sections = _history(run, name)
    if metrics is not None and (found := _epoch_table(metrics)):
        sections.append(f"## Metrics\n\n{found}")
    if row is not None:
        sections.append(f"## Metrics\n\n{_row_table(row)}")
    library: Literal["peft", "sentence-transformers", "embarc"] = "peft" if run.adapts else "sentence-transformers"
    return embedder_card(
        title=name,
        library=library if obstacle is None else "embarc",
        relation="adapter" if run.adapts else "finetune",
        licence=licence_of(run.base, lookup_backbone(pinned(run.config.backbone)[0])),
        base=origin[0] if origin is not None else None if run.base is None else str(run.base),
        revision=None if origin is None else origin[1],
        obstacle=obstacle,
        sections=sections,
    )


def merge_sections(run: Run, row: Mapping[str, Any]) -> list[str]:
    """What the card of a run's merge says beyond the merge itself: how its inputs were trained, and its row of the report."""
    return [*_history(run, None), f"## Metrics\n\n{_row_table(row)}"]


def _history(run: Run, name: str | None) -> list[str]:
    """The data and settings of the stages up to the one of this name, without its sister replicas; None: of all."""
    names = [stage.name for stage in run.data.stages]
    stages: Sequence[StageData] = run.data.stages
    if name is not None:
        before = stages[: names.index(name) + 1] if name in names else ()
        stages = [stage for stage in before if stage.replica is None or stage.name == name]
    if not stages:
        return []
    data = table(
        ("stage", "data", "texts", "labels"),
        [(stage.name, _data_of(run.config, stage), len(stage.data.texts), _labels(stage)) for stage in stages],
    )
    header = ("stage", "epochs at most", "steps an epoch", "labels x texts a batch", "learning rate")
    settings = table(header, [_settings_of(stage) for stage in stages])
    return [f"## Data\n\n{data}", f"## Training\n\n{settings}\n\n{_shared(run)}"]


def _data_of(config: TrainConfig, stage: StageData) -> str:
    if config.data is not None:
        return f"the file {Path(config.data).name}"
    return f"integer sequences: {', '.join(stage.stage.families)}"


def _labels(stage: StageData) -> int:
    return len(set(stage.data.labels))


def _settings_of(stage: StageData) -> tuple[object, ...]:
    asked = stage.stage
    batch = f"{stage.classes} x {stage.per_class}"
    return (stage.name, asked.epochs, asked.steps_per_epoch, batch, asked.learning_rate)


def _shared(run: Run) -> str:
    config, lora = run.config, run.config.lora
    said = [f"{describe_objective(config)}, AdamW, seed {config.seed}."]
    if run.adapts:
        kind = f"{'rs' if lora.use_rslora else ''}{'DoRA' if lora.use_dora else 'LoRA'}"
        said.append(f"{kind} of rank {lora.r}, alpha {lora.alpha}, dropout {lora.dropout:g}.")
        if lora.quantization != "none":
            said.append(f"The frozen base was in {lora.quantization} meanwhile; merges take it as it is stored.")
    if config.bidirectional:
        said.append("The causal mask of the base was removed.")
    return " ".join(said)


def _epoch_table(metrics: Mapping[str, Any]) -> str:
    """The metrics of the epoch whose weights were kept."""
    epochs: Sequence[Mapping[str, Any]] = metrics["epochs"]
    best = metrics.get("best_epoch") or len(epochs)
    kept = next((epoch for epoch in epochs if epoch.get("epoch") == best), {})
    rows = [
        (name, float(value), MEASURED_ON[name.partition("/")[0]])
        for name, value in kept.items()
        if name.partition("/")[0] in MEASURED_ON and name != "train/gradient_norm"
    ]
    return (
        f"Of epoch {best}, whose weights these are.\n\n{table(('metric', 'value', 'measured on'), rows)}"
        if rows
        else ""
    )


def _row_table(row: Mapping[str, Any]) -> str:
    """The four columns by suite, and retention."""
    suites: dict[str, Mapping[str, Any]] = {"the paper's 24 windows": row}
    suites |= {f"suite {name}": found for name, found in row["suites"].items() if isinstance(found, Mapping)}
    rows = [
        (name, found[name], where) for where, found in suites.items() for name in COLUMNS if _is_number(found, name)
    ]
    for name, value in (row.get("retention") or {}).items():
        if isinstance(value, float):
            rows.append((f"retention/{name}", value, "suite broad, against the base's embeddings"))
    return table(("metric", "value", "measured on"), rows)


def _is_number(found: Mapping[str, Any], name: str) -> bool:
    return isinstance(found.get(name), int | float)
