"""Silhouettes and their null against scikit-learn, one thread on both sides, with the peak memory of each."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from threadpoolctl import threadpool_limits

from benchmarks import in_process
from benchmarks.memory_growth import WIDTH, data, growth, ours, sklearn
from benchmarks.result import Check, Result, Settings, command_of, compare

PART = "evaluation"
THREADS = 1
ROWS, MANY_ROWS = 20_000, 500_000
TINY, MANY_TINY = 60, 600
GOALS = {"euclidean": 1 / 3, "cosine": 1 / 100}
LARGEST_SHARE = 1 / 5
"""Of scikit-learn's memory, for the Euclidean silhouette."""
LARGEST_GROWTH = 256.0
"""Megabytes (10**6 bytes) beyond half a million rows."""


def measure(settings: Settings) -> list[Result]:
    """Return the results of this part."""
    with one_thread():
        null = in_process.null(settings)
        silhouettes = [silhouette(metric, settings) for metric in GOALS]
    return [*silhouettes, many_rows(settings), replace(null, part=PART, command=command_of(PART))]


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold torch and the BLAS of numpy to one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        with threadpool_limits(THREADS):
            yield
    finally:
        torch.set_num_threads(before)


def silhouette(metric: str, settings: Settings) -> Result:
    """Time and memory of both sides."""
    rows = TINY if settings.quick else ROWS
    embeddings, labels = data(rows)
    timed = compare(
        PART,
        f"{metric} silhouette of {rows:,} x {WIDTH}",
        "scikit-learn's silhouette_score",
        lambda: ours(embeddings, labels, metric),
        lambda: sklearn(embeddings, labels, metric),
        repeats=settings.repeats,
        threads=THREADS,
    )
    if settings.quick:
        return replace(timed, goal=GOALS[metric])
    (mine, _), (peers, _) = (growth(side, metric, rows) for side in ("ours", "sklearn"))
    share = Check(what="peak memory over scikit-learn's", value=mine / peers, goal=LARGEST_SHARE)
    difference = abs(ours(embeddings, labels, metric) - sklearn(embeddings, labels, metric))
    return replace(
        timed,
        goal=GOALS[metric],
        checks=[share] if metric == "euclidean" else [],
        details={"peak_bytes": mine, "peer_peak_bytes": peers, "difference": difference},
    )


def many_rows(settings: Settings) -> Result:
    """What scikit-learn would need hours for, beside one look at each row."""
    rows = MANY_TINY if settings.quick else MANY_ROWS
    runs = [growth("ours", "cosine", rows) for _ in range(1 if settings.quick else 3)]
    embeddings, _ = data(rows)
    with one_thread():
        timed = compare(
            PART,
            f"cosine silhouette of {rows:,} x {WIDTH}",
            "the rows' lengths in float64",
            lambda: ours(embeddings, torch.arange(rows) % 6, "cosine"),
            lambda: torch.linalg.vector_norm(embeddings, dim=1, dtype=torch.float64),
            repeats=settings.repeats,
            threads=THREADS,
        )
    grown = max(size for size, _ in runs)
    memory = Check(what="memory beyond the input", value=grown / 1e6, goal=LARGEST_GROWTH, unit="MB")
    return replace(timed, checks=[memory], details={"peak_bytes": grown})
