"""KMeans clusters of embeddings, as scikit-learn finds them, and how much they depend on the seed.

Dimension names:
    n: texts
    d: embedding width
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import torch
from jaxtyping import Float64, Int64
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from evaluation.centring import Embeddings, centred, checked
from evaluation.centroid_indices import davies_bouldin
from evaluation.codes import row_codes
from evaluation.reasons import null_for_nan
from evaluation.silhouettes import sample_silhouettes, silhouette_undefined


def kmeans_labels(embeddings: Embeddings, k: int, *, seed: int = 0, restarts: int = 10) -> Int64[Tensor, " n"]:
    """Labels of scikit-learn's ``KMeans(k, n_init=restarts, random_state=seed)``: the best inertia of the restarts.

    The embeddings are passed on as they are, neither centred nor widened (bfloat16, which numpy lacks, as float32), so
    the labels are those a user gets from scikit-learn. They still depend on the seed: k-means has many optima (see
    `kmeans_spread`).

    Raises:
        ValueError: embeddings that are not a finite matrix, k < 1, or fewer texts than clusters.

    Example:
        >>> labels = kmeans_labels(torch.tensor([[0.0], [1.0], [10.0], [11.0]]), 2)
        >>> bool(labels[0] == labels[1]), bool(labels[1] == labels[2])
        (True, False)
    """
    rows = checked(embeddings).cpu()
    if not 1 <= k <= rows.shape[0]:
        raise ValueError(f"k: expected 1 to {rows.shape[0]} clusters for {rows.shape[0]} texts, got {k}; add texts")
    array = (rows.float() if rows.dtype == torch.bfloat16 else rows).numpy()
    with warnings.catch_warnings():
        # texts that coincide leave clusters empty: callers count those that were found
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(k, n_init=restarts, random_state=seed).fit_predict(array)
    return torch.as_tensor(found, dtype=torch.int64)


def kmeans_spread(embeddings: Embeddings, k: int, *, seeds: int = 20, restarts: int = 10) -> dict[str, Any]:
    """How the KMeans columns of the report vary over the seeds 0, 1, ... of `kmeans_labels`.

    On the paper's 24 texts all-MiniLM-L6-v2 has about 25 distinct partitions in 50 seeds, with silhouettes of 0.21 to
    0.25: a single one is a draw, not a property of the model.

    Args:
        embeddings: (n, d), any floating dtype.
        k: clusters.
        seeds: how many, at least 2.
        restarts: of each seed.

    Returns:
        ``seeds``; ``distinct``: different partitions among them, whatever their clusters are called; ``silhouette`` and
        ``davies_bouldin``, each ``{mean, sd, low, high}`` over the seeds, low and high being the least and the greatest;
        ``best: {seed, inertia, silhouette, davies_bouldin}``: the first seed of the lowest inertia, which is the sum of
        squared distances to the centroids in float64. What is undefined, for one seed at least, is None, and
        ``<key>_reason`` beside it says why.

    Raises:
        ValueError: embeddings that are not a finite matrix, k < 1, fewer texts than clusters, or fewer than 2 seeds.

    Example:
        >>> spread = kmeans_spread(torch.tensor([[0.0], [1.0], [10.0], [11.0]]), 2, seeds=3)
        >>> spread["distinct"], spread["best"]["inertia"], round(spread["silhouette"]["mean"], 4)
        (1, 1.0, 0.8997)
    """
    if seeds < 2:
        raise ValueError(f"seeds: expected at least 2 to compare, got {seeds}; 20 is a good number")
    points = centred(embeddings)
    measured: dict[tuple[int, ...], _Partition] = {}
    results = []
    for seed in range(seeds):
        found = kmeans_labels(embeddings, k, seed=seed, restarts=restarts)
        codes, distinct = row_codes(found, points.shape[0], name="found")
        partition = tuple(codes.tolist())
        if partition not in measured:
            measured[partition] = _measured(points, codes, distinct)
        results.append(measured[partition])
    best = min(range(seeds), key=lambda seed: results[seed].inertia)
    return {
        "seeds": seeds,
        "distinct": len(measured),
        "silhouette": _spread([(result.silhouette, result.silhouette_reason) for result in results]),
        "davies_bouldin": _spread([(result.davies_bouldin, result.davies_bouldin_reason) for result in results]),
        "best": {"seed": best, **results[best].columns()},
    }


@dataclass(frozen=True, kw_only=True)
class _Partition:
    """One way to cut the texts into clusters, measured."""

    inertia: float
    silhouette: float
    silhouette_reason: str | None
    davies_bouldin: float
    davies_bouldin_reason: str | None

    def columns(self) -> dict[str, Any]:
        return {
            "inertia": self.inertia,
            **null_for_nan({"silhouette": self.silhouette}, self.silhouette_reason),
            **null_for_nan({"davies_bouldin": self.davies_bouldin}, self.davies_bouldin_reason),
        }


def _measured(points: Float64[Tensor, "n d"], codes: Int64[Tensor, " n"], found: int) -> _Partition:
    index, index_reason = davies_bouldin(points, codes, found)
    reason = silhouette_undefined(points, found)
    return _Partition(
        inertia=_inertia(points, codes.to(points.device), found),
        silhouette=math.nan if reason else float(sample_silhouettes(points, codes, found).mean()),
        silhouette_reason=reason,
        davies_bouldin=index,
        davies_bouldin_reason=index_reason,
    )


def _inertia(points: Float64[Tensor, "n d"], codes: Int64[Tensor, " n"], k: int) -> float:
    counts = torch.bincount(codes, minlength=k)
    centroids = points.new_zeros(k, points.shape[1]).index_add_(0, codes, points) / counts[:, None]
    return float((points - centroids[codes]).square().sum())


def _spread(measured: Sequence[tuple[float, str | None]]) -> dict[str, Any]:
    for value, reason in measured:
        if math.isnan(value):
            return null_for_nan(dict.fromkeys(("mean", "sd", "low", "high"), math.nan), reason)
    values = [value for value, _ in measured]
    return {"mean": fmean(values), "sd": stdev(values), "low": min(values), "high": max(values)}
