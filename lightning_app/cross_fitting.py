"""Cross-fitting: the paper's suite measured by models that did not train on what they are measured on.

The last stage is trained again for every fold, on the paper's own texts outside the fold; the texts inside are unseen. The
distance between the two is what a table over texts that were trained on would hide.

Dimension names: n texts, m of them in a fold, d embedding, f folds, p permutations.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from data.folds import Fold, paper_folds
from data.suites import paper_suite
from evaluation.centring import centred
from evaluation.clustering import clustering_report, silhouette_score
from evaluation.reasons import null_for_nan
from evaluation.silhouettes import mean_silhouettes, silhouette_undefined
from lightning_app.fitting import fit_stage, load_stage
from lightning_app.preparation import Run
from lightning_app.presentation import announce
from lightning_app.stages import StageData
from models.adapter import adapter_state, load_adapter_weights

COLUMNS = ("silhouette_true", "davies_bouldin_true", "silhouette_kmeans", "davies_bouldin_kmeans")
PERMUTATIONS = 1000


@dataclass(frozen=True, kw_only=True)
class FoldEmbeddings:
    """What a fold's model makes of all 24 texts, (24, d)."""

    fold: Fold
    embeddings: Tensor


def cross_fit(run: Run, folder: Path, before: Mapping[str, Tensor], *, chief: bool) -> dict[str, Any] | None:
    """Train the last stage once a fold, and measure each fold's unseen texts.

    Args:
        run: With the last stage's weights in its embedder, as they are again afterwards.
        folder: Of the run; each fold leaves ``cross-fit/FOLD``, and one that is there already is not trained again.
        before: The weights that the last stage began with.
        chief: Whether this rank measures; all ranks train.

    Returns:
        The row of the report; None on ranks other than the first.
    """
    after = adapter_state(run.embedder)
    stage, paper = run.data.stages[-1], paper_suite()
    found: list[FoldEmbeddings] = []
    for fold in paper_folds(run.config.cross_fit):
        _train_fold(run, stage, fold, folder, before)
        if chief:
            found.append(FoldEmbeddings(fold=fold, embeddings=run.encode(paper.texts)))
    load_adapter_weights(run.embedder, after, source=f"stage {stage.name}")
    if not chief:
        return None
    return {
        "name": f"{stage.name}-cross-fit",
        "family": "lora" if run.adapts else "encoder",
        "source": "measured",
        "prompt": run.prompt,
        **cross_fit_report(found, paper.labels, seed=run.config.seed),
        "suites": {},
        "retention": None,
        "retention_reason": "made of several models, one a fold",
    }


def _train_fold(run: Run, stage: StageData, fold: Fold, folder: Path, before: Mapping[str, Tensor]) -> None:
    """The fold's model, trained or taken from its folder, in the run's embedder."""
    target = folder / "cross-fit" / fold.name
    if (target / "manifest.json").is_file():
        announce(f"cross-fit {fold.name}: finished before, taken from {target}")
        load_stage(run, target)
        return
    load_adapter_weights(run.embedder, before, source=f"weights before stage {stage.name}")
    families = len(set(fold.training.labels))
    refitted = StageData(
        stage=stage.stage,
        name=f"cross-fit-{fold.name}",
        data=fold.training,
        classes=families,
        per_class=len(fold.training.texts) // families,
    )
    fit_stage(run, refitted, target, folder=folder, suites={})


def cross_fit_report(found: Sequence[FoldEmbeddings], labels: Sequence[int], *, seed: int = 0) -> dict[str, Any]:
    """The four columns as means over the folds, each over its unseen texts, and the null of the first.

    Args:
        found: Every fold's embeddings of all texts.
        labels: Of all texts, 0..k-1.
        seed: Of KMeans and the permutations.

    Returns:
        ``silhouette_true, davies_bouldin_true, silhouette_kmeans, davies_bouldin_kmeans, null`` as `clustering_report` gives
        them, and ``note``, which says what the texts that were trained on score. What is undefined in one fold is None.
    """
    codes = torch.tensor(list(labels))
    report: dict[str, Any] = {}
    by_fold = [
        clustering_report(_unseen(one), codes[list(one.fold.held_out)], seed=seed, permutations=0) for one in found
    ]
    for column in COLUMNS:
        values = [math.nan if fold[column] is None else fold[column] for fold in by_fold]
        reasons = [
            f"fold {one.fold.name}: {fold[f'{column}_reason']}"
            for one, fold in zip(found, by_fold, strict=True)
            if fold[column] is None
        ]
        report |= null_for_nan({column: sum(values) / len(values)}, reasons[0] if reasons else None)
    seen = [
        silhouette_score(one.embeddings[list(one.fold.trained_on)], codes[list(one.fold.trained_on)]) for one in found
    ]
    mean = sum(seen) / len(seen)
    shown = "undefined" if math.isnan(mean) else f"{mean:.3f}"
    null = cross_fit_null(found, codes, permutations=PERMUTATIONS, seed=seed)
    return report | {
        "null": null_for_nan(null, report.get("silhouette_true_reason", "every relabelling scores the same")),
        "note": f"unseen windows; on the windows it was trained on: {shown} (means of {len(found)} folds)",
    }


def cross_fit_null(
    found: Sequence[FoldEmbeddings], codes: Int64[Tensor, " n"], *, permutations: int, seed: int
) -> dict[str, float]:
    """Mean, sd, z and p of the mean silhouette over the folds, when labels are shuffled.

    One shuffle relabels all texts at once, and every fold is scored by it: so folds that share texts are no independent
    witnesses. Labels move among texts that the same folds hold out, which leaves every fold with two of each.
    """
    parts = [(centred(_unseen(one)), torch.tensor(one.fold.held_out)) for one in found]
    k = int(codes.max()) + 1
    if any(silhouette_undefined(points, k) is not None for points, _ in parts):
        return dict.fromkeys(("mean", "sd", "z", "p"), math.nan)
    shuffles = _shuffles(codes, [one.fold.held_out for one in found], permutations, seed)
    scores = torch.stack([mean_silhouettes(points, shuffles[:, index], k) for points, index in parts]).mean(dim=0)
    observed = float(torch.stack([mean_silhouettes(points, codes[None, index], k) for points, index in parts]).mean())
    mean, sd = float(scores.mean()), float(scores.std())
    reached = int((scores >= observed - 1e-12).sum())
    z = (observed - mean) / sd if sd > 1e-12 else math.nan
    return {"mean": mean, "sd": sd, "z": z, "p": (1 + reached) / (1 + permutations)}


def _unseen(one: FoldEmbeddings) -> Float[Tensor, "m d"]:
    return one.embeddings[list(one.fold.held_out)]


def _shuffles(
    codes: Int64[Tensor, " n"], held_out: Sequence[Sequence[int]], permutations: int, seed: int
) -> Int64[Tensor, "p n"]:
    """Relabellings that keep the labels of every set of texts which the same folds hold out."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = codes.repeat(permutations, 1)
    pattern = [tuple(i in fold for fold in held_out) for i in range(len(codes))]
    for wanted in sorted(set(pattern)):
        members = torch.tensor([i for i, own in enumerate(pattern) if own == wanted])
        order = torch.rand(permutations, len(members), generator=generator, dtype=torch.float64).argsort(dim=1)
        shuffled[:, members] = codes[members[order]]
    return shuffled
