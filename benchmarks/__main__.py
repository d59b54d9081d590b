"""Every benchmark: ours and its peer in turn in one process, medians, as ratios; writes results.json and README.md."""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import silhouette_score as sklearn_silhouette

from evaluation import permutation_null, silhouette_score
from merging import merge_checkpoints
from storage.atomic import write_text
from storage.json_file import write_json

HERE = Path(__file__).parent
COMMAND = "make bench"


@dataclass(frozen=True, kw_only=True)
class Result:
    """Median seconds of ours and of the peer; a ratio below 1 means that ours is faster."""

    name: str
    peer_is: str
    ours: float
    peer: float
    ratio: float
    repeats: int
    command: str = COMMAND


def compare(name: str, peer_is: str, ours: Callable[[], Any], peer: Callable[[], Any], *, repeats: int = 5) -> Result:
    """Time both in turn, after one run each that is not counted."""
    ours()
    peer()
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(repeats):
        for which, work in (("ours", ours), ("peer", peer)):
            begin = time.perf_counter()
            work()
            seconds[which].append(time.perf_counter() - begin)
    one, two = (statistics.median(seconds[which]) for which in ("ours", "peer"))
    return Result(name=name, peer_is=peer_is, ours=one, peer=two, ratio=one / two, repeats=repeats)


def silhouette() -> Result:
    """3,000 embeddings of 384 numbers under 6 labels."""
    torch.manual_seed(0)
    embeddings, labels = torch.randn(3000, 384), torch.arange(3000) % 6
    return compare(
        "silhouette of 3,000 x 384",
        "scikit-learn's silhouette_score",
        lambda: silhouette_score(embeddings, labels),
        lambda: sklearn_silhouette(embeddings.numpy(), labels.numpy()),
    )


def null() -> Result:
    """The permutation null of a suite of 216."""
    torch.manual_seed(0)
    embeddings, labels = torch.randn(216, 128), torch.arange(216) % 6

    def loop() -> None:
        for _ in range(100):
            sklearn_silhouette(embeddings.numpy(), labels[torch.randperm(216)].numpy())

    return compare(
        "permutation null, 100 of 216 x 128",
        "scikit-learn's silhouette_score in a loop",
        lambda: permutation_null(embeddings, labels, permutations=100),
        loop,
    )


def slerp(folder: Path) -> Result:
    """Two checkpoints of 64 MB, file to file; ours also checks for NaN, records angles and hashes, and syncs to disk."""
    torch.manual_seed(0)
    for name in ("a", "b"):
        (folder / name).mkdir()
        tensors = {f"layers.{i}.weight": torch.randn(1024, 1024) for i in range(16)}
        save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})
        (folder / name / "config.json").write_text("{}")

    def plain() -> None:
        a, b = (load_file(folder / name / "model.safetensors") for name in ("a", "b"))
        merged = {}
        for name in a:
            x, y = a[name].double(), b[name].double()
            theta = torch.arccos((x * y).sum() / (x.norm() * y.norm()))
            one, two = (torch.sin(theta / 2) / torch.sin(theta),) * 2
            merged[name] = (one * x + two * y).float()
        save_file(merged, folder / "plain.safetensors")

    inputs = [folder / "a", folder / "b"]
    return compare(
        "slerp of two checkpoints of 64 MB",
        "load both, a loop in float64 torch, save",
        lambda: merge_checkpoints(inputs, folder / "merged", method="slerp", t=0.5, overwrite=True),
        plain,
    )


def main() -> int:
    """Run every benchmark and write both files."""
    with tempfile.TemporaryDirectory() as folder:
        results = [silhouette(), null(), slerp(Path(folder))]
    write_json(HERE / "results.json", [asdict(result) for result in results])
    lines = [f"| {r.name} | {r.peer_is} | {r.ours:.3f} | {r.peer:.3f} | {r.ratio:.2f} |" for r in results]
    write_text(
        HERE / "README.md",
        "# Benchmarks\n\n"
        f"Made by `{COMMAND}` on {torch.get_num_threads()} CPU threads: medians of {results[0].repeats} interleaved runs; "
        "a ratio below 1 means that ours is faster. Seconds depend on the machine, ratios much less.\n\n"
        "| what | peer | ours, s | peer, s | ratio |\n|---|---|---|---|---|\n" + "\n".join(lines) + "\n\n"
        "On a GPU: not measured. The comparison with mergekit's commands comes with the merge engine's other methods.\n",
    )
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
