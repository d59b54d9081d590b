"""What the KMeans columns would be without clusters: Gaussian clouds of the same covariance spectrum, clustered alike.

Dimension names:
    n: texts
    d: embedding width
    r: directions that the embeddings span
"""

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from evaluation.centring import Embeddings, centred
from evaluation.clustering import davies_bouldin_score, silhouette_score
from evaluation.kmeans import kmeans_labels
from evaluation.reasons import null_for_nan
from evaluation.silhouettes import silhouette_undefined

_TAIL = 0.025

_METRICS = (("silhouette", silhouette_score, "high"), ("davies_bouldin", davies_bouldin_score, "low"))


def gaussian_null(
    embeddings: Embeddings,
    k: int,
    *,
    draws: int = 99,
    seed: int = 0,
    restarts: int = 10,
    spectrum: Literal["exact", "sampled"] = "exact",
) -> dict[str, Any]:
    """Silhouette and Davies-Bouldin of KMeans labels against those of Gaussian clouds, which have no clusters.

    KMeans cuts any cloud into parts that look separate: for the spectrum of all-MiniLM-L6-v2 on the paper's 24 texts a
    Gaussian has a KMeans silhouette of 0.10. Each draw has n points in the span of the embeddings, and KMeans is run on
    it as on the embeddings.

    Args:
        embeddings: (n, d), any floating dtype.
        k: clusters, the number of distinct labels for the paper's columns.
        draws: Gaussian clouds, at least 2. 99 resolve p down to 0.01.
        seed: of the draws, and of KMeans on the embeddings.
        restarts: of every KMeans.
        spectrum: "exact": every draw has the very singular values of the centred embeddings. Gaussian embeddings of
            any covariance are such a draw themselves, so their p is uniform. "sampled": rows are drawn from the normal
            distribution with the embeddings' covariance. When there are fewer texts than directions the spectrum of such a
            draw falls more steeply, which raises its silhouette (0.13 in the case above) and p with it: the mean p of 24
            Gaussian embeddings is then 0.8.

    Returns:
        ``{"draws", "silhouette": {mean, sd, high, z, p}, "davies_bouldin": {mean, sd, low, z, p}}``: mean and standard
        deviation of the draws, their 97.5 % quantile ``high`` (a high silhouette is good) or 2.5 % quantile ``low`` (a low
        Davies-Bouldin is good), z = (observed - mean) / sd, and the one-sided p = (1 + draws at least as good) / (1 +
        draws), never 0. Where the metric is undefined the numbers are None, each with ``<key>_reason`` beside it: for
        k < 2, k > n - 1 and embeddings that coincide.

    Raises:
        ValueError: fewer than 2 draws, k < 1, another spectrum, or embeddings that are not a finite matrix.

    Reference:
        Liu et al., "Statistical significance of clustering for high-dimension, low-sample size data", 2008 (the sampled
        form); Langsrud, "Rotation tests", 2005 (the exact one).

    Example:
        >>> blobs = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [9.0, 0.0], [8.0, 0.0], [9.0, 1.0], [0.0, 9.0], [1.0, 9.0]])
        >>> null = gaussian_null(blobs, 3, draws=19, restarts=1)
        >>> null["silhouette"]["high"] < 0.8, null["silhouette"]["p"]
        (True, 0.05)
    """
    if draws < 2:
        raise ValueError(f"draws: expected at least 2, got {draws}; 99 is a good number")
    if k < 1:
        raise ValueError(f"k: expected at least 1 cluster, got {k}; give the number of distinct labels")
    if spectrum not in ("exact", "sampled"):
        raise ValueError(f"spectrum: expected 'exact' or 'sampled', got {spectrum!r}; 'exact' gives uniform p-values")
    points = centred(embeddings)
    undefined = silhouette_undefined(points, k)
    if undefined is not None:
        numbers = {key: ("mean", "sd", best, "z", "p") for key, _, best in _METRICS}
        return {"draws": draws} | {
            key: null_for_nan(dict.fromkeys(names, math.nan), undefined) for key, names in numbers.items()
        }
    observed = kmeans_labels(embeddings, k, seed=seed, restarts=restarts)
    clouds = _clouds(points, draws, torch.Generator().manual_seed(seed), exact=spectrum == "exact")
    drawn: dict[str, list[float]] = {key: [] for key, _, _ in _METRICS}
    for draw, cloud in enumerate(clouds):
        found = kmeans_labels(cloud, k, seed=draw, restarts=restarts)
        for key, score, _ in _METRICS:
            drawn[key].append(score(cloud, found))
    report: dict[str, Any] = {"draws": draws}
    for key, score, best in _METRICS:
        report[key] = _standing(score(embeddings, observed), drawn[key], best=best)
    return report


def _clouds(
    points: Float64[Tensor, "n d"], draws: int, generator: torch.Generator, *, exact: bool
) -> Iterator[Float64[Tensor, "n r"]]:
    """Gaussian clouds on the CPU, in the coordinates of the principal axes: distances do not depend on the axes."""
    n, values = points.shape[0], _singular_values(points)
    for _ in range(draws):
        normal = torch.randn(n, values.shape[0], generator=generator, dtype=torch.float64)
        if exact:
            # Orthonormal columns with mean 0, uniform over all such: the left singular vectors of any Gaussian cloud.
            directions, triangle = torch.linalg.qr(normal - normal.mean(dim=0))
            yield directions * triangle.diagonal().sign() * values
        else:
            yield normal * values / math.sqrt(n - 1)


def _singular_values(points: Float64[Tensor, "n d"]) -> Float64[Tensor, " r"]:
    """Those of centred points, at most n - 1; directions of rounding noise are left out."""
    values = torch.linalg.svdvals(points).cpu()[: points.shape[0] - 1]
    return values[values > 1e-12 * values[0]]


def _standing(observed: float, drawn: list[float], *, best: str) -> dict[str, Any]:
    """Where the observed value stands among the drawn ones. Draws without a value (KMeans left no partition of them)
    count as better than anything, so that they never make a result look significant."""
    defined = torch.tensor([value for value in drawn if not math.isnan(value)], dtype=torch.float64)
    if math.isnan(observed) or defined.numel() < 2:
        what = "of the embeddings" if math.isnan(observed) else "of the Gaussian draws"
        return null_for_nan(
            dict.fromkeys(("mean", "sd", best, "z", "p"), math.nan), f"KMeans leaves no partition {what} to be scored"
        )
    sign = 1.0 if best == "high" else -1.0
    reached = int((sign * defined >= sign * observed - 1e-12).sum()) + len(drawn) - defined.numel()
    mean, sd = float(defined.mean()), float(defined.std())
    values = {
        "mean": mean,
        "sd": sd,
        best: float(defined.quantile(1 - _TAIL if best == "high" else _TAIL)),
        "z": (observed - mean) / sd if sd > 1e-12 else math.nan,
        "p": (1 + reached) / (1 + len(drawn)),
    }
    return null_for_nan(values, "every Gaussian draw scores the same")
