"""How well embeddings separate by label: silhouettes, Davies-Bouldin, Calinski-Harabasz, the columns of the paper's Table 2.

Dimension names:
    n: texts
    d: embedding width
    k: clusters
"""

import math
from collections.abc import Hashable
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from evaluation.centring import Embeddings, centred, checked
from evaluation.centroid_indices import calinski_harabasz, davies_bouldin
from evaluation.cosine_silhouettes import cosine_silhouettes
from evaluation.kmeans import kmeans_labels
from evaluation.labels import Labels, label_codes, label_values
from evaluation.nulls import permutation_null_of
from evaluation.reasons import null_for_nan
from evaluation.silhouettes import sample_silhouettes, silhouette_undefined

METRICS = ("euclidean", "cosine")


def silhouette_score(embeddings: Embeddings, labels: Labels, *, metric: str = "euclidean") -> float:
    """Mean silhouette of the texts as scikit-learn defines it, computed in float64 around the mean.

    Each text scores (b - a) / max(a, b), where a is its mean distance to the others of its label and b the smallest
    mean distance to another label; a text that is alone in its label scores 0.

    Args:
        embeddings: (n, d), any floating dtype.
        labels: n labels, integers or strings.
        metric: ``"euclidean"``, in O(n^2 d), or ``"cosine"`` (1 - cos), in O(n k d) and with hardly any memory beyond
            the input.

    Returns:
        -1..1, best 1. Zero is not what chance gives: see `permutation_null`. nan when there are fewer than 2 or more
        than n - 1 distinct labels, and when all embeddings coincide (scikit-learn says 0, which would rank a collapsed
        model above an honest negative score). By cosine also nan when an embedding is zero, which has no direction.

    Raises:
        ValueError: embeddings that are not a finite matrix, labels that do not match them, or another metric.

    Reference:
        Rousseeuw, "Silhouettes: a graphical aid to the interpretation and validation of cluster analysis", 1987.

    Example:
        >>> round(silhouette_score(torch.tensor([[0.0], [1.0], [10.0], [11.0]]), ["a", "a", "b", "b"]), 4)
        0.8997
    """
    return silhouette_and_reason(embeddings, labels, metric=metric)[0]


def silhouette_samples(embeddings: Embeddings, labels: Labels, *, metric: str = "euclidean") -> Float64[Tensor, " n"]:
    """The silhouette of each text; see `silhouette_score`, which is their mean, for arguments and errors.

    Returns:
        n numbers in -1..1, best 1, on the device of the embeddings; all nan where the score is undefined.

    Example:
        >>> silhouette_samples(torch.tensor([[0.0], [1.0], [10.0], [11.0]]), ["a", "a", "b", "b"]).round(decimals=4)
        tensor([0.9048, 0.8947, 0.8947, 0.9048], dtype=torch.float64)
    """
    return _samples(embeddings, labels, metric)[0]


def silhouette_by_label(embeddings: Embeddings, labels: Labels, *, metric: str = "euclidean") -> dict[Hashable, float]:
    """The mean silhouette of each label's texts; see `silhouette_score` for arguments and errors.

    Returns:
        Labels in order of first appearance, each with a number in -1..1, best 1: nan for every label where the score is
        undefined, 0 for a label of one text.

    Example:
        >>> by_label = silhouette_by_label(torch.tensor([[0.0], [1.0], [5.0], [9.0]]), ["a", "a", "b", "b"])
        >>> {label: round(score, 4) for label, score in by_label.items()}
        {'a': 0.8452, 'b': 0.3203}
    """
    scores = _samples(embeddings, labels, metric)[0].cpu()
    codes, k = label_codes(labels, len(scores))
    means = scores.new_zeros(k).index_add_(0, codes, scores) / torch.bincount(codes, minlength=k)
    return dict(zip(dict.fromkeys(label_values(labels)), means.tolist(), strict=True))


def silhouette_and_reason(
    embeddings: Embeddings, labels: Labels, *, metric: str = "euclidean"
) -> tuple[float, str | None]:
    """`silhouette_score`, and why it is undefined if it is nan.

    Example:
        >>> silhouette_and_reason(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), [0, 0, 1], metric="cosine")
        (nan, '1 of 3 embeddings are zero and have no direction')
    """
    scores, reason = _samples(embeddings, labels, metric)
    return float(scores.mean()), reason


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
    return davies_bouldin(points, codes, k)[0]


def calinski_harabasz_score(embeddings: Embeddings, labels: Labels) -> float:
    """Calinski-Harabasz index: dispersion between labels over dispersion within, each over its degrees of freedom.

    Args:
        embeddings: (n, d), any floating dtype.
        labels: n labels, integers or strings.

    Returns:
        0..infinity, best high; about 1 where labels mean nothing. It grows with n, so only compare it on the same
        texts. nan when there are fewer than 2 or more than n - 1 distinct labels, and when no label has a spread of its
        own, as after a collapse (scikit-learn says 1).

    Raises:
        ValueError: embeddings that are not a finite matrix, or labels that do not match them.

    Reference:
        Calinski & Harabasz, "A dendrite method for cluster analysis", 1974.

    Example:
        >>> calinski_harabasz_score(torch.tensor([[0.0], [1.0], [10.0], [11.0]]), ["a", "a", "b", "b"])
        200.0
    """
    return calinski_harabasz_and_reason(embeddings, labels)[0]


def calinski_harabasz_and_reason(embeddings: Embeddings, labels: Labels) -> tuple[float, str | None]:
    """`calinski_harabasz_score`, and why it is undefined if it is nan.

    Example:
        >>> calinski_harabasz_and_reason(torch.tensor([[0.0], [0.0], [1.0]]), ["a", "a", "b"])
        (nan, 'no cluster has a spread of its own')
    """
    points = centred(embeddings)
    codes, k = label_codes(labels, points.shape[0])
    return calinski_harabasz(points, codes, k)


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
    scores, reason = _euclidean(points, codes, k)
    index, index_reason = davies_bouldin(points, codes, k)
    return null_for_nan({f"silhouette_{suffix}": float(scores.mean())}, reason) | null_for_nan(
        {f"davies_bouldin_{suffix}": index}, index_reason
    )


def _relabelled(labels: Int64[Tensor, " n"]) -> tuple[Int64[Tensor, " n"], int]:
    """KMeans may leave a cluster empty where texts coincide: count the clusters it found."""
    return label_codes(labels, labels.shape[0])


def _samples(embeddings: Embeddings, labels: Labels, metric: str) -> tuple[Float64[Tensor, " n"], str | None]:
    """The silhouette of each text, and why they are nan if they are."""
    if metric not in METRICS:
        raise ValueError(f"metric: expected {' or '.join(METRICS)}, got {metric!r}; name one of them")
    rows = checked(embeddings) if metric == "cosine" else centred(embeddings)
    codes, k = label_codes(labels, rows.shape[0])
    return cosine_silhouettes(rows, codes, k) if metric == "cosine" else _euclidean(rows, codes, k)


def _euclidean(
    points: Float64[Tensor, "n d"], codes: Int64[Tensor, " n"], k: int
) -> tuple[Float64[Tensor, " n"], str | None]:
    undefined = silhouette_undefined(points, k)
    if undefined is not None:
        return points.new_full((points.shape[0],), math.nan), undefined
    return sample_silhouettes(points, codes, k), None
