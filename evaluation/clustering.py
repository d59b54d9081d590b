"""How well embeddings separate by label: the four columns of the paper's Table 2, with the null beside them.

Dimension names:
    n: texts
    d: embedding width
    k: clusters
"""

import math
from typing import Any

import torch
from jaxtyping import Float64, Int64
from sklearn.cluster import KMeans
from torch import Tensor

from evaluation.centring import Embeddings, centred, checked
from evaluation.distances import pairwise_distances
from evaluation.labels import Labels, label_codes
from evaluation.nulls import permutation_null_of
from evaluation.reasons import null_for_nan
from evaluation.silhouettes import mean_silhouettes, silhouette_undefined


def silhouette_score(embeddings: Embeddings, labels: Labels) -> float:
    """Mean silhouette of the texts, Euclidean, as scikit-learn defines it, computed in float64 around the mean.

    Each text scores (b - a) / max(a, b), where a is its mean distance to the others of its label and b the smallest
    mean distance to another label; a text that is alone in its label scores 0.

    Args:
        embeddings: (n, d), any floating dtype.
        labels: n labels, integers or strings.

    Returns:
        -1..1, best 1. Zero is not what chance gives: see `permutation_null`. nan when there are fewer than 2 or more
        than n - 1 distinct labels, and when all embeddings coincide (scikit-learn says 0, which would rank a collapsed
        model above an honest negative score).

    Raises:
        ValueError: embeddings that are not a finite matrix, or labels that do not match them.

    Reference:
        Rousseeuw, "Silhouettes: a graphical aid to the interpretation and validation of cluster analysis", 1987.

    Example:
        >>> round(silhouette_score(torch.tensor([[0.0], [1.0], [10.0], [11.0]]), ["a", "a", "b", "b"]), 4)
        0.8997
    """
    points = centred(embeddings)
    codes, k = label_codes(labels, points.shape[0])
    return _silhouette(points, codes, k)


def davies_bouldin_score(embeddings: Embeddings, labels: Labels) -> float:
    """Davies-Bouldin index: for each label its worst ratio of scatter to centroid distance, averaged.

    Args:
        embeddings: (n, d), any floating dtype.
        labels: n labels, integers or strings.

    Returns:
        0..infinity, best 0. nan when there are fewer than 2 or more than n - 1 distinct labels, and when two centroids
        coincide, as they do after a collapse (scikit-learn and torchmetrics give collapsed embeddings the perfect 0).

    Raises:
        ValueError: embeddings that are not a finite matrix, or labels that do not match them.

    Reference:
        Davies & Bouldin, "A cluster separation measure", 1979.

    Example:
        >>> davies_bouldin_score(torch.tensor([[0.0], [1.0], [10.0], [11.0]]), ["a", "a", "b", "b"])
        0.1
    """
    points = centred(embeddings)
    codes, k = label_codes(labels, points.shape[0])
    return _davies_bouldin(points, codes, k)[0]


def kmeans_labels(embeddings: Embeddings, k: int, *, seed: int = 0, restarts: int = 10) -> Int64[Tensor, " n"]:
    """Labels of scikit-learn's ``KMeans(k, n_init=restarts, random_state=seed)``: the best inertia of the restarts.

    The embeddings are passed on as they are, neither centred nor widened (bfloat16, which numpy lacks, as float32), so
    the labels are those a user gets from scikit-learn. They still depend on the seed: k-means has many optima.

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
    found = KMeans(k, n_init=restarts, random_state=seed).fit_predict(array)
    return torch.as_tensor(found, dtype=torch.int64)


def clustering_report(
    embeddings: Embeddings, labels: Labels, *, seed: int = 0, permutations: int = 1000
) -> dict[str, Any]:
    """The paper's four columns and the permutation null of the first, ready for a row of the report.

    k of the KMeans columns is the number of distinct labels. With ``permutations=0`` there is no ``null``.

    Returns:
        ``silhouette_true, davies_bouldin_true, silhouette_kmeans, davies_bouldin_kmeans`` and
        ``null: {mean, sd, z, p}``. What is undefined is None, and ``<key>_reason`` beside it says why.

    Raises:
        ValueError: embeddings that are not a finite matrix, or labels that do not match them.

    Example:
        >>> report = clustering_report(torch.tensor([[0.0], [1.0], [10.0], [11.0]]), [0, 0, 0, 0])
        >>> report["silhouette_true"], report["silhouette_true_reason"]
        (None, 'needs 2 to 3 distinct labels for 4 texts, got 1')
    """
    points = centred(embeddings)
    codes, k = label_codes(labels, points.shape[0])
    report = _scores(points, codes, k, "true")
    undefined = silhouette_undefined(points, k)
    if undefined is None:
        report |= _scores(points, *_relabelled(kmeans_labels(embeddings, k, seed=seed)), "kmeans")
        if permutations == 0:
            return report
        null = permutation_null_of(points, codes, k, permutations=permutations, seed=seed)
        z_reason = "every relabelling scores the same"
        report["null"] = null_for_nan({"mean": null.mean, "sd": null.sd, "z": null.z, "p": null.p}, z_reason)
    else:
        report |= null_for_nan({"silhouette_kmeans": math.nan, "davies_bouldin_kmeans": math.nan}, undefined)
        if permutations > 0:
            report["null"] = null_for_nan(dict.fromkeys(("mean", "sd", "z", "p"), math.nan), undefined)
    return report


def _scores(points: Float64[Tensor, "n d"], codes: Int64[Tensor, " n"], k: int, suffix: str) -> dict[str, Any]:
    silhouette_reason = silhouette_undefined(points, k)
    index, index_reason = _davies_bouldin(points, codes, k)
    return null_for_nan({f"silhouette_{suffix}": _silhouette(points, codes, k)}, silhouette_reason) | null_for_nan(
        {f"davies_bouldin_{suffix}": index}, index_reason
    )


def _silhouette(points: Float64[Tensor, "n d"], codes: Int64[Tensor, " n"], k: int) -> float:
    if silhouette_undefined(points, k) is not None:
        return math.nan
    return float(mean_silhouettes(points, codes[None, :], k))


def _relabelled(labels: Int64[Tensor, " n"]) -> tuple[Int64[Tensor, " n"], int]:
    """KMeans may leave a cluster empty where texts coincide: count the clusters it found."""
    return label_codes(labels, labels.shape[0])


def _davies_bouldin(points: Float64[Tensor, "n d"], codes: Int64[Tensor, " n"], k: int) -> tuple[float, str | None]:
    """The index, and why it is undefined if it is nan."""
    undefined = silhouette_undefined(points, k)
    if undefined is not None:
        return math.nan, undefined
    codes = codes.to(points.device)
    counts = torch.bincount(codes, minlength=k).double()
    centroids = points.new_zeros(k, points.shape[1]).index_add_(0, codes, points) / counts[:, None]
    radii = torch.linalg.vector_norm(points - centroids[codes], dim=1)
    scatter = points.new_zeros(k).index_add_(0, codes, radii) / counts
    apart = pairwise_distances(centroids, centroids).fill_diagonal_(torch.inf)
    # Centroids that are equal in exact arithmetic differ by rounding: a few float64 units of the cloud's own radius.
    if apart.min() <= 1e-12 * torch.linalg.vector_norm(points, dim=1).max():
        return math.nan, "the centroids of two clusters coincide"
    ratios = (scatter[:, None] + scatter[None, :]) / apart
    return float(ratios.amax(dim=1).mean()), None
