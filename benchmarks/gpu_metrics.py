"""The silhouettes of ``python -m benchmarks evaluation`` on a GPU, against distances in plain torch on the same device.

    python -m benchmarks.gpu_metrics --output benchmarks/gpu_metrics.json

builds the embeddings, compares each score with the CPU's, times, and takes the peak of the device's memory; the result
is JSON.  ``--shrink 100 --device cpu`` runs the same on a CPU in seconds.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_merge import seconds
from benchmarks.memory_growth import LABELS, WIDTH, data
from evaluation import permutation_null, silhouette_score
from storage.atomic import write_text

ROWS, MANY_ROWS, COMPARED_ROWS, PERMUTATIONS = 20_000, 500_000, 5_000, 100
LARGEST_ERROR = 1e-6


def plain(embeddings: Tensor, labels: Tensor, metric: str) -> Tensor:
    """The peer: all distances in float64, a strip at a time, summed by a one-hot matrix."""
    rows = embeddings.double()
    if metric == "cosine":
        rows = torch.nn.functional.normalize(rows)
    one_hot = torch.nn.functional.one_hot(labels, LABELS).double()
    counts, scores = one_hot.sum(dim=0), []
    for strip, own in zip(rows.split(1024), labels.split(1024), strict=True):
        distances = 1 - strip @ rows.T if metric == "cosine" else torch.cdist(strip, rows)
        sums = distances @ one_hot
        within = sums.gather(1, own[:, None])[:, 0] / (counts[own] - 1)
        between = (sums / counts).scatter(1, own[:, None], torch.inf).amin(dim=1)
        scores.append((between - within) / torch.maximum(within, between))
    return torch.cat(scores).mean()


def timed(
    name: str, ours: Callable[[], Any], peer: Callable[[], Any] | None, device: torch.device, repeats: int
) -> dict[str, Any]:
    """Seconds of both sides and, on a GPU, the most memory that ours took beyond what was there."""
    cuda = device.type == "cuda"
    before = 0
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    ours()
    row: dict[str, Any] = {
        "name": name,
        "peak_bytes": torch.cuda.max_memory_allocated(device) - before if cuda else None,
    }
    row["ours"] = seconds(ours, device, repeats)
    row["peer"] = None if peer is None else seconds(peer, device, repeats)
    row["ratio"] = None if peer is None else row["ours"] / row["peer"]
    return row


def measure(device: torch.device, shrink: int, repeats: int) -> dict[str, Any]:
    """Build, compare with the CPU, and time."""
    rows, many, compared = (max(60, size // shrink) for size in (ROWS, MANY_ROWS, COMPARED_ROWS))
    found, errors = [], {}
    embeddings, labels = (tensor.to(device) for tensor in data(rows))
    for metric in ("euclidean", "cosine"):
        here = silhouette_score(embeddings[:compared], labels[:compared], metric=metric)
        there = silhouette_score(embeddings[:compared].cpu(), labels[:compared], metric=metric)
        errors[metric] = max(
            abs(here - there), abs(here - float(plain(embeddings[:compared], labels[:compared], metric)))
        )
        assert errors[metric] < LARGEST_ERROR, f"{metric}: off by {errors[metric]:.1e}"
        ours = partial(silhouette_score, embeddings, labels, metric=metric)
        peer = partial(plain, embeddings, labels, metric)
        found.append(timed(f"{metric} silhouette of {rows:,} x {WIDTH}", ours, peer, device, repeats))
    large, codes = (tensor.to(device) for tensor in data(many))
    ours = partial(silhouette_score, large, codes, metric="cosine")
    found.append(timed(f"cosine silhouette of {many:,} x {WIDTH}", ours, None, device, repeats))
    ours = partial(permutation_null, embeddings[:216], labels[:216], permutations=PERMUTATIONS)
    found.append(timed(f"permutation null, {PERMUTATIONS} of 216 x {WIDTH}", ours, None, device, repeats))
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "peer_is": "all distances in float64 by plain torch, in strips of 1024",
        "repeats": repeats,
        "versions": {"torch": torch.__version__},
        "differences": errors,
        "rows": found,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse flags, measure, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shrink", type=int, default=1, help="divide every number of rows by this")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--output", type=Path, help="also write the JSON to this file")
    told = parser.parse_args(arguments)
    result = measure(torch.device(told.device), told.shrink, told.repeats)
    flags = f"--device {told.device} --shrink {told.shrink} --repeats {told.repeats}"
    result["command"] = f"python -m benchmarks.gpu_metrics {flags}"
    text = json.dumps(result, indent=2)
    print(text)
    if told.output is not None:
        write_text(told.output, text + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
