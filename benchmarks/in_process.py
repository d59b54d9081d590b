"""Calls of ours and of a peer in one process: metrics, their null, and a merge against plain torch."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import silhouette_score as sklearn_silhouette

from benchmarks.result import Result, Settings, compare
from evaluation import permutation_null, silhouette_score
from merging import merge_checkpoints

PART = "in_process"


def measure(settings: Settings) -> list[Result]:
    """Return the results of this part."""
    return [silhouette(settings), null(settings), slerp(settings)]


def silhouette(settings: Settings) -> Result:
    """Many embeddings under 6 labels."""
    torch.manual_seed(0)
    rows = 60 if settings.quick else 3000
    embeddings, labels = torch.randn(rows, 384), torch.arange(rows) % 6
    return compare(
        PART,
        f"silhouette of {rows:,} x 384",
        "scikit-learn's silhouette_score",
        lambda: silhouette_score(embeddings, labels),
        lambda: sklearn_silhouette(embeddings.numpy(), labels.numpy()),
        repeats=settings.repeats,
        threads=torch.get_num_threads(),
    )


def null(settings: Settings) -> Result:
    """The permutation null of a suite of 216."""
    torch.manual_seed(0)
    embeddings, labels = torch.randn(216, 128), torch.arange(216) % 6
    permutations = 5 if settings.quick else 100

    def loop() -> None:
        for _ in range(permutations):
            sklearn_silhouette(embeddings.numpy(), labels[torch.randperm(216)].numpy())

    return compare(
        PART,
        f"permutation null, {permutations} of 216 x 128",
        "scikit-learn's silhouette_score in a loop",
        lambda: permutation_null(embeddings, labels, permutations=permutations),
        loop,
        repeats=settings.repeats,
        threads=torch.get_num_threads(),
    )


def slerp(settings: Settings) -> Result:
    """Two checkpoints, file to file; ours also checks for NaN, records angles and hashes, and syncs to disk."""
    torch.manual_seed(0)
    folder, side = settings.scratch, 32 if settings.quick else 1024
    for name in ("a", "b"):
        (folder / name).mkdir()
        tensors = {f"layers.{i}.weight": torch.randn(side, side) for i in range(16)}
        save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})
        (folder / name / "config.json").write_text("{}")
    inputs = [folder / "a", folder / "b"]
    return compare(
        PART,
        f"slerp of two checkpoints of {16 * 4 * side**2 / 1e6:.3g} MB",
        "load both, a loop in float64 torch, save",
        lambda: merge_checkpoints(inputs, folder / "merged", method="slerp", t=0.5, overwrite=True),
        lambda: _plain_slerp(folder),
        repeats=settings.repeats,
        threads=torch.get_num_threads(),
    )


def _plain_slerp(folder: Path) -> None:
    a, b = (load_file(folder / name / "model.safetensors") for name in ("a", "b"))
    merged = {}
    for name in a:
        x, y = a[name].double(), b[name].double()
        theta = torch.arccos((x * y).sum() / (x.norm() * y.norm()))
        merged[name] = (torch.sin(theta / 2) / torch.sin(theta) * (x + y)).float()
    save_file(merged, folder / "plain.safetensors")
