"""Everything that is measured of one model on one suite: the mapping that a row of the report holds.

Dimension names:
    n: texts
    d: embedding width
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.agreement import agreement_undefined, cluster_agreement
from evaluation.centring import Embeddings, centred
from evaluation.clustering import (
    calinski_harabasz_and_reason,
    clustering_report,
    silhouette_and_reason,
    silhouette_by_label,
)
from evaluation.confusion import matched_confusion
from evaluation.intervals import Interval, fresh_window_interval, jackknife_spread
from evaluation.kmeans import kmeans_labels, kmeans_spread
from evaluation.linear_probe import linear_probe_accuracy, linear_probe_undefined
from evaluation.neighbours import neighbour_accuracy, neighbour_undefined
from evaluation.nuisance import nuisance_table
from evaluation.nulls import permutation_null
from evaluation.reasons import null_for_nan
from evaluation.silhouettes import silhouette_undefined
from evaluation.spectrum_null import gaussian_null

REPLICATES = 9
"""Replicate suites that a suite is cut into for its own interval, where it has texts enough: the large one has 36 a label."""


_OF_CLUSTERS = (
    *("calinski_harabasz_kmeans", "kmeans_ari", "kmeans_nmi", "kmeans_ami"),
    *("silhouette_by_family", "confusion", "nuisance"),
)
"""What needs clusters, and has one reason where there are none."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is spent on saying what chance gives."""

    permutations: int = 1000
    """Shuffles of the labels behind the null of the silhouette."""
    draws: int = 99
    """Gaussian clouds behind the null of the KMeans columns; 0 leaves it out."""
    kmeans_seeds: int = 20
    """Seeds behind the spread of the KMeans columns; 0 leaves it out."""


def suite_report(
    embeddings: Embeddings,
    labels: Sequence[int],
    *,
    families: Sequence[str],
    blocks: Sequence[Hashable],
    nuisances: Mapping[str, Sequence[int | float]],
    seed: int = 0,
    permutations: int = 1000,
) -> dict[str, Any]:
    """Separation by the true labels, what KMeans finds instead, and what that follows.

    Args:
        embeddings: (n, d), any floating dtype.
        labels: n indices into ``families``.
        families: the class names.
        blocks: where each text was cut from; texts of one block never vote for each other.
        nuisances: name -> n numbers, properties that a model might follow instead.
        seed: of KMeans, the permutations and the folds.
        permutations: shuffles of the labels.

    Returns:
        What `clustering_report` returns, ``null_within`` (the same null from shuffles within the windows of one number, where
        ``nuisances`` has ``window``), ``silhouette_cosine``, ``calinski_harabasz_true`` and ``_kmeans``, ``nn1_accuracy``,
        ``knn5_accuracy``, ``linear_probe_accuracy``, ``kmeans_ari``, ``_nmi`` and ``_ami``, ``silhouette_by_family``,
        ``confusion`` and ``nuisance``. What is undefined is None, and ``<key>_reason`` beside it says why.

    Raises:
        ValueError: embeddings that are not a finite matrix, or labels, blocks or nuisances that do not match them.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [9.0, 1.0], [9.0, 2.0]])
        >>> length = {"length": [1.0, 2.0, 1.0, 2.0]}
        >>> report = suite_report(x, [0, 0, 1, 1], families=["a", "b"], blocks=range(4), nuisances=length)
        >>> report["nn1_accuracy"], report["confusion"]["matrix"]
        (1.0, [[2, 0], [0, 2]])
    """
    report = clustering_report(embeddings, labels, seed=seed, permutations=permutations)
    undefined = silhouette_undefined(centred(embeddings), len(set(labels)))
    if "window" in nuisances:
        within = permutation_null(embeddings, labels, strata=nuisances["window"], permutations=permutations, seed=seed)
        numbers = {"mean": within.mean, "sd": within.sd, "z": within.z, "p": within.p}
        report["null_within"] = null_for_nan(numbers, undefined or "every shuffle within the windows scores the same")
    cosine, reason = silhouette_and_reason(embeddings, labels, metric="cosine")
    report |= null_for_nan({"silhouette_cosine": cosine}, reason)
    index, reason = calinski_harabasz_and_reason(embeddings, labels)
    report |= null_for_nan({"calinski_harabasz_true": index}, reason)
    for k, key in ((1, "nn1_accuracy"), (5, "knn5_accuracy")):
        value = neighbour_accuracy(embeddings, labels, blocks=blocks, k=k)
        report |= null_for_nan({key: value}, neighbour_undefined(embeddings, labels, blocks=blocks, k=k))
    probe = linear_probe_accuracy(embeddings, labels, blocks=blocks, seed=seed)
    report |= null_for_nan({"linear_probe_accuracy": probe}, linear_probe_undefined(embeddings, labels, blocks=blocks))
    if undefined is None:
        return report | _clusters(embeddings, labels, families=families, nuisances=nuisances, seed=seed)
    return report | {name: value for key in _OF_CLUSTERS for name, value in ((key, None), (f"{key}_reason", undefined))}


def _clusters(
    embeddings: Embeddings,
    labels: Sequence[int],
    *,
    families: Sequence[str],
    nuisances: Mapping[str, Sequence[int | float]],
    seed: int,
) -> dict[str, Any]:
    """What KMeans finds, against the families and the nuisances."""
    found = kmeans_labels(embeddings, len(set(labels)), seed=seed)
    confusion = matched_confusion(labels, found)
    by_label = silhouette_by_label(embeddings, labels)
    index, reason = calinski_harabasz_and_reason(embeddings, found)
    agreement = {f"kmeans_{key}": value for key, value in cluster_agreement(labels, found).items()}
    return {
        **null_for_nan({"calinski_harabasz_kmeans": index}, reason),
        **null_for_nan(agreement, agreement_undefined(labels) or agreement_undefined(found)),
        "silhouette_by_family": {families[int(str(label))]: value for label, value in by_label.items()},
        "confusion": {
            "families": [families[int(str(label))] for label in confusion.labels],
            "matrix": confusion.matrix.tolist(),
            "accuracy": confusion.accuracy,
        },
        "nuisance": nuisance_table(embeddings, labels, nuisances, found),
    }


def chance_report(embeddings: Embeddings, k: int, *, effort: Effort, seed: int = 0) -> dict[str, Any]:
    """What the KMeans columns would be without any clusters, and how much they depend on the seed.

    Returns:
        ``null_kmeans`` (see `gaussian_null`) and ``kmeans_spread`` (see `kmeans_spread`), each only if ``effort`` asks for it.
    """
    report: dict[str, Any] = {}
    if effort.draws:
        report["null_kmeans"] = gaussian_null(embeddings, k, draws=effort.draws, seed=seed)
    if effort.kmeans_seeds:
        report["kmeans_spread"] = kmeans_spread(embeddings, k, seeds=effort.kmeans_seeds)
    return report


def interval_report(
    embeddings: Embeddings,
    labels: Sequence[int],
    blocks: Sequence[Hashable],
    *,
    observed: float | None = None,
    per_label: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The 95 % interval of a silhouette, from windows that are not in the suite itself or from parts of the suite.

    Args:
        embeddings, labels, blocks: of the windows that are cut into replicate suites.
        observed: the silhouette on another suite, with ``per_label`` texts a label; None: on these texts as a whole.
        per_label: texts a label in each replicate; None: a ninth of the smallest label, at least 2.
        seed: of the cut.

    Returns:
        ``interval: {low, high, sd, level, replicates, per_label, method}``, or None with ``interval_reason``.
    """
    smallest = min(list(labels).count(label) for label in set(labels))
    texts = per_label or max(2, smallest // REPLICATES)
    found = fresh_window_interval(embeddings, labels, blocks=blocks, per_label=texts, observed=observed, seed=seed)
    return {"interval": _interval(found)} if found.reason is None else _no_interval(found.reason)


def jackknife_report(embeddings: Embeddings, labels: Sequence[int], blocks: Sequence[Hashable]) -> dict[str, Any]:
    """``jackknife``: the spread of the silhouette when one block at a time is left out; it is no interval."""
    return {"jackknife": jackknife_spread(embeddings, labels, blocks=blocks)}


def _interval(found: Interval) -> dict[str, Any]:
    return {
        "low": found.low,
        "high": found.high,
        "sd": found.sd,
        "level": found.level,
        "replicates": found.replicates,
        "per_label": found.per_label,
        "method": "fresh windows",
    }


def _no_interval(reason: str) -> dict[str, Any]:
    return {"interval": None, "interval_reason": reason}
