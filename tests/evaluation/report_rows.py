"""A large report out of thin air: 20 models with everything that can be measured, six baselines, the published rows."""

from pathlib import Path
from typing import Any

import numpy as np

from evaluation.report_panels import Panel

SIX = ("consecutive", "even", "odd", "primes", "recaman", "composites")
BASELINES = ("last-digit", "first-differences", "parity", "string-length", "char-tfidf", "random")
MODELS = (
    ("tiny-llm", "base"),
    *((f"stages/{place}-{name}", "lora") for place, name in enumerate(("broad", "six", "six-long"), 1)),
    *((f"merged/{name}", "soup") for name in ("soup", "greedy-soup", "model-stock", "norm-matched-soup")),
    *((f"merged/{name}", "slerp") for name in ("slerp", "karcher", "nuslerp", "hierarchical-slerp-of-all-the-stages")),
    *((f"merged/{name}", "control") for name in ("linear", "linear-rescaled")),
    *((name, "encoder") for name in ("all-minilm", "gte-large", "bge-gemma2", "nomic-moe", "me5-large")),
    ("broken/checkpoint", "encoder"),
)


def many_rows() -> list[dict[str, Any]]:
    """20 models, the last of which failed to load, then baselines and published rows."""
    rng = np.random.default_rng(4)
    rows = [_row(name, family, rng) for name, family in MODELS[:-1]]
    rows.append(failed_row(*MODELS[-1]))
    rows += [_row(name, "baseline", rng) | _no_base() for name in BASELINES]
    rows[-3] |= {"silhouette_true": -0.335, "davies_bouldin_true": 32.9}
    return rows + published_rows()


def failed_row(name: str, family: str) -> dict[str, Any]:
    """The row of a model that could not be loaded."""
    reason = "broken/checkpoint: expected finite weights, got NaN in model.layers.3.mlp.up_proj.weight; train it again"
    row = _nothing(reason) | {"name": name, "family": family, "source": "measured", "prompt": None, "suites": {}}
    return row | {"error": reason}


def published_rows() -> list[dict[str, Any]]:
    """14 rows that have the paper's four numbers and nothing else."""
    rng = np.random.default_rng(5)
    names = [f"published/model-{place}" for place in range(13)] + ["published/llama-embed-nemotron-8b"]
    rows = []
    for name in names:
        row = _nothing("published by the paper, not measured here") | {"name": name, "prompt": None, "suites": {}}
        numbers = dict(zip(("silhouette_true", "davies_bouldin_true"), rng.uniform((-0.1, 1), (0.3, 3)), strict=True))
        numbers |= dict(
            zip(("silhouette_kmeans", "davies_bouldin_kmeans"), rng.uniform((0.1, 1), (0.3, 2)), strict=True)
        )
        row |= {"family": "published", "source": "published", **numbers}
        rows.append({key: value for key, value in row.items() if key.removesuffix("_reason") not in numbers} | numbers)
    return rows


def many_panels() -> dict[str, Panel]:
    """Six clouds of four points for each model that was measured."""
    rng = np.random.default_rng(6)
    return {name: panel(rng, separation=place / 4) for place, (name, _) in enumerate(MODELS[:-1])}


def panel(rng: np.random.Generator, *, separation: float = 2.0, labels: tuple[str, ...] = SIX) -> Panel:
    """Points that lie apart by family as far as asked."""
    centres = separation * rng.normal(size=(len(labels), 2))
    points = np.repeat(centres, 4, axis=0) + rng.normal(size=(4 * len(labels), 2))
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    return Panel(
        tsne=20 * points,
        pca=points,
        pca_shares=(0.412, 0.173),
        distances=distances,
        labels=tuple(label for label in labels for _ in range(4)),
        texts=tuple(f"{100 * place}, {100 * place + 1}, {100 * place + 2}, …" for place in range(4 * len(labels))),
    )


def many_curves() -> dict[str, list[tuple[int, float]]]:
    """Two training losses."""
    return {stage: [(step, 2.0 / (1 + step / 40)) for step in range(0, 200, 5)] for stage in ("1-broad", "2-six")}


def write(folder: Path) -> Path:
    """The whole report in a folder; returns its page."""
    from evaluation import write_report

    write_report(
        folder,
        many_rows(),
        title="embarc: evaluation of twenty models",
        context={"backbone": "tiny-llm", "seed": 0, "command": "python evaluate.py tiny-llm … --suite large"},
        curves=many_curves(),
        panels=many_panels(),
    )
    return folder / "report.html"


HOSTILE = (
    "<script>alert('x')</script>",
    "שלום עולם מודל",
    "\u202eevil",
    "a" * 200,
    "tab\tand\nnewline",
    "=1+1",
    "\u200b",
    "日本語の埋め込みモデル/チェックポイント",
)


def write_hostile(folder: Path) -> Path:
    """A report whose every text is one that might break a page; returns it."""
    from evaluation import write_report

    rng = np.random.default_rng(7)
    rows = [_row(name, "lora", rng) | {"prompt": name, "note": name} for name in HOSTILE]
    rows[0] |= {"silhouette_by_family": dict.fromkeys(HOSTILE, 0.2), "benchmarks": dict.fromkeys(HOSTILE, 0.2)}
    rows[3]["error"] = rows[4]["interval_reason"] = HOSTILE[3]
    rows[4]["interval"] = None
    write_report(
        folder,
        rows,
        title=" ".join(HOSTILE),
        context={text: text for text in HOSTILE},
        curves={text: [(0, 1.0), (1, 2.0)] for text in HOSTILE},
        panels={text: panel(rng, labels=HOSTILE) for text in HOSTILE},
    )
    return folder / "report.html"


def _row(name: str, family: str, rng: np.random.Generator) -> dict[str, Any]:
    true, kept = float(rng.uniform(-0.12, 0.5)), float(rng.uniform(0.5, 1.0))
    row: dict[str, Any] = {"name": name, "family": family, "source": "measured", "prompt": None, "dimensions": 384}
    row |= _separation(rng, true) | _kmeans(rng)
    row["null"] = {"mean": -0.109, "sd": 0.022, "z": (true + 0.109) / 0.022, "p": 0.001 if true > -0.06 else 0.18}
    row["interval"] = {
        "low": true - 0.06,
        "high": true + 0.07,
        "sd": 0.03,
        "level": 0.95,
        "replicates": 9,
        "per_label": 4,
    }
    row["jackknife"] = {"sd": 0.01, "low": true - 0.02, "high": true + 0.02, "deleted": 24}
    row["suites"] = {suite: _suite(rng, true) for suite in ("large", "held-out", "matched")}
    row["retention"] = {"cka": kept, "rsa": 0.9 * kept, "knn": 0.8 * kept, "procrustes": 0.95 * kept}
    row["geometry"] = {"anisotropy": 0.4, "effective_rank": 12.4, "uniformity": -2.1, "alignment": 0.5}
    row["benchmarks"] = {"STSBenchmark": float(rng.uniform(0.6, 0.9)), "Banking77Classification": 0.7}
    row["lengths"] = _lengths(rng, true)
    return row


def _separation(rng: np.random.Generator, true: float) -> dict[str, Any]:
    scores = ("nn1_accuracy", "knn5_accuracy", "linear_probe_accuracy", "kmeans_ari", "kmeans_nmi", "kmeans_ami")
    return {
        "silhouette_true": true,
        "davies_bouldin_true": float(rng.uniform(0.6, 3.2)),
        "silhouette_cosine": true + 0.01,
        "calinski_harabasz_true": 12.3,
        **{score: float(rng.uniform(0, 1)) for score in scores},
        "silhouette_by_family": {family: float(rng.uniform(-0.3, 0.8)) for family in SIX[:5]} | {SIX[5]: None},
    }


def _kmeans(rng: np.random.Generator) -> dict[str, Any]:
    found, davies = float(rng.uniform(0.12, 0.5)), float(rng.uniform(0.6, 1.8))
    spread = {"mean": found, "sd": 0.01, "low": found - 0.02, "high": found + 0.02}
    matrix = rng.multinomial(4, [0.5, 0.1, 0.1, 0.1, 0.1, 0.1], size=6).tolist()
    names = ("family", "magnitude", "window", "length", "parity", "tokens")
    keys = ("ami_clusters", "ami_family", "share_clusters", "share_axis1", "share_axis2")
    return {
        "silhouette_kmeans": found,
        "davies_bouldin_kmeans": davies,
        "calinski_harabasz_kmeans": 20.1,
        "null_kmeans": {
            "draws": 99,
            "silhouette": {"mean": 0.13, "sd": 0.02, "high": 0.18, "z": 2.0, "p": 0.01},
            "davies_bouldin": {"mean": 1.4, "sd": 0.1, "low": 1.2, "z": -1.0, "p": 0.2},
        },
        "kmeans_spread": {
            "seeds": 20,
            "distinct": 12,
            "silhouette": spread,
            "davies_bouldin": {"mean": davies, "sd": 0.1, "low": davies - 0.1, "high": davies + 0.1},
            "best": {"seed": 7, "inertia": 3.2, "silhouette": found, "davies_bouldin": davies},
        },
        "confusion": {"families": list(SIX), "matrix": matrix, "accuracy": 0.54},
        "nuisance": [{"name": name, **{key: float(rng.uniform(-0.1, 0.9)) for key in keys}} for name in names],
    }


def _suite(rng: np.random.Generator, true: float) -> dict[str, Any]:
    value = true + float(rng.normal(0, 0.05))
    interval = {"low": value - 0.02, "high": value + 0.02, "sd": 0.01, "level": 0.95, "replicates": 9, "per_label": 4}
    return {"silhouette_true": value, "interval": interval, "nn1_accuracy": 0.7, "linear_probe_accuracy": 0.8}


def _lengths(rng: np.random.Generator, true: float) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = [
        {"terms": terms, "silhouette_true": true + 0.05 * float(np.log(terms / 50)) + float(rng.normal(0, 0.02)),
         "null": {"mean": -0.1 + 0.0002 * terms, "sd": 0.02, "z": 4.0, "p": 0.001}}
        for terms in (10, 20, 50, 100, 200)
    ]  # fmt: skip
    reason = "a text of 400 terms has 1,204 tokens and the model reads 512"
    return [*entries, {"terms": 400, "silhouette_true": None, "silhouette_true_reason": reason}]


def _no_base() -> dict[str, Any]:
    return {"retention": None, "retention_reason": "a baseline has no base", "lengths": [], "benchmarks": {}}


def _nothing(reason: str) -> dict[str, Any]:
    keys = ("silhouette_true", "davies_bouldin_true", "silhouette_kmeans", "davies_bouldin_kmeans")
    empty = dict.fromkeys((*keys, "null", "retention"))
    return empty | {f"{key}_reason": reason for key in empty}
