"""By how much a process grows at most while it computes one silhouette, apart from the embeddings it is given.

    python -m benchmarks.memory_growth ours euclidean 20000

prints the bytes and the seconds of that call.  Each is measured in a process of its own, whose high-water mark Linux
sets back before the call: what imports and the making of the input once took is not counted.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation import silhouette_score

WIDTH, LABELS = 384, 6


def data(rows: int) -> tuple[Tensor, Tensor]:
    """Float32 embeddings that mean nothing, under 6 labels."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, WIDTH, generator=generator), torch.arange(rows) % LABELS


def ours(embeddings: Tensor, labels: Tensor, metric: str) -> float:
    """Our silhouette."""
    return silhouette_score(embeddings, labels, metric=metric)


def sklearn(embeddings: Tensor, labels: Tensor, metric: str) -> float:
    """scikit-learn's."""
    from sklearn.metrics import silhouette_score as score

    return float(score(embeddings.numpy(), labels.numpy(), metric=metric))


SIDES: dict[str, Callable[[Tensor, Tensor, str], float]] = {"ours": ours, "sklearn": sklearn}


def growth(side: str, metric: str, rows: int) -> tuple[int, float]:
    """Bytes and seconds of one call in a fresh process with one thread.

    Raises:
        RuntimeError: the process failed; the message ends with what it wrote to stderr.
    """
    command = [sys.executable, "-m", __name__, side, metric, str(rows)]
    root = Path(__file__).parent.parent
    told = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    done = subprocess.run(command, cwd=root, env=os.environ | told, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr[-2000:]}")
    grown, seconds = done.stdout.split()
    return int(grown), float(seconds)


def _kilobytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise AssertionError(f"Linux tells no {field}")


def measured(work: Callable[[], Any]) -> tuple[int, float]:
    """By how many bytes this process grows at most during a call, and the call's seconds."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _kilobytes("VmRSS")
    begin = time.perf_counter()
    work()
    seconds = time.perf_counter() - begin
    return (_kilobytes("VmHWM") - before) * 1024, seconds


def main(arguments: Sequence[str]) -> int:
    """Measure one call, after one of a few rows that loads the libraries."""
    side, metric, rows = SIDES[arguments[0]], arguments[1], int(arguments[2])
    embeddings, labels = data(rows)
    side(embeddings[:50], labels[:50], metric)
    print(*measured(lambda: side(embeddings, labels, metric)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
