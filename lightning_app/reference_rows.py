"""Rows that stand beside the measured models: trivial baselines, the paper's own figures, and MTEB scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation.baselines import BASELINES, baseline_embeddings
from evaluation.published import published_rows
from lightning_app.measurement import Measured, Measures, failed_row, measured_baseline
from models.backbones import lookup_backbone

__all__ = ["baseline_rows", "benchmark_name", "benchmark_rows", "published_rows"]


def baseline_rows(measures: Measures) -> list[Measured]:
    """One row a baseline: features that a few lines of code compute, on the suites that the models are measured on."""

    def measured(name: str) -> Measured:
        def encode(texts: Sequence[str]) -> Tensor:
            return torch.from_numpy(baseline_embeddings(name, list(texts), seed=measures.seed))

        return measured_baseline(name, encode, meaning=BASELINES[name].meaning, measures=measures)

    return [measured(name) for name in BASELINES]


def benchmark_rows(
    rows: Sequence[Mapping[str, Any]], scores: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    """The rows with ``benchmarks``, {task: main score}; models that have MTEB results only get a row of their own.

    Args:
        rows: Of the models and baselines.
        scores: Model -> task -> main score, as `benchmark_scores` gives them.
    """
    left, found = dict(scores), []
    for row in rows:
        known = [model for model in scores if row["family"] != "baseline" and _same_model(str(row["name"]), model)]
        for model in known:
            left.pop(model, None)
        merged = {task: score for model in known for task, score in scores[model].items()}
        found.append({**row, "benchmarks": merged} if merged else dict(row))
    for model, tasks in left.items():
        row = failed_row(benchmark_name(model), "encoder", "only its MTEB results were given")
        del row["error"]
        found.append(row | {"source": "published", "benchmarks": dict(tasks)})
    return found


def benchmark_name(model: str) -> str:
    """The name of the row of a model that has MTEB results only."""
    return f"{model} (MTEB)"


def _same_model(name: str, model: str) -> bool:
    """Whether a row's name and MTEB's model name (``organisation/model``) mean one model."""
    backbone = lookup_backbone(name)
    hub = backbone.repo_id if backbone is not None else None
    return model in (name, hub) or (model.partition("/")[2] or model) == Path(name).name
