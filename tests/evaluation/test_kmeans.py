"""KMeans is scikit-learn's, and its spread over seeds is that of separate calls."""

import math
from statistics import fmean, stdev

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from sklearn.metrics import davies_bouldin_score as sklearn_davies_bouldin
from sklearn.metrics import silhouette_score as sklearn_silhouette

from evaluation import kmeans_labels, kmeans_spread


def cloud(seed=0, n=24, d=12, dtype=torch.float32):
    """Points without clusters, on which k-means has many optima."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)


def finite(report):
    """Whether no number of the nested mapping is NaN."""
    return all(finite(value) if isinstance(value, dict) else value == value for value in report.values())


def test_labels_are_scikit_learns_on_the_embeddings_as_they_are():
    points = cloud()
    for seed, restarts in ((0, 10), (1, 3)):
        expected = KMeans(4, n_init=restarts, random_state=seed).fit_predict(points.numpy())
        assert kmeans_labels(points, 4, seed=seed, restarts=restarts).tolist() == expected.tolist()
    halves = points.bfloat16()
    expected = KMeans(4, n_init=10, random_state=0).fit_predict(halves.float().numpy())
    assert kmeans_labels(halves, 4).tolist() == expected.tolist()


def test_spread_is_that_of_separate_calls_of_scikit_learn():
    points = cloud()
    array = points.numpy()
    fits = [KMeans(6, n_init=2, random_state=seed).fit(array) for seed in range(6)]
    partitions = [fit.labels_ for fit in fits]
    fresh = [i for i, p in enumerate(partitions) if all(adjusted_rand_score(p, q) < 1 for q in partitions[:i])]
    spread = kmeans_spread(points, 6, seeds=6, restarts=2)
    assert spread["seeds"] == 6
    assert spread["distinct"] == len(fresh) > 1, "seeds that agree show nothing"
    for key, score in (("silhouette", sklearn_silhouette), ("davies_bouldin", sklearn_davies_bouldin)):
        values = [score(array.astype(np.float64), p) for p in partitions]
        expected = {"mean": fmean(values), "sd": stdev(values), "low": min(values), "high": max(values)}
        assert spread[key] == pytest.approx(expected, abs=1e-9)
    best = min(range(6), key=lambda seed: round(fits[seed].inertia_, 3))
    assert spread["best"]["seed"] == best
    assert spread["best"]["inertia"] == pytest.approx(fits[best].inertia_, rel=1e-5)
    assert spread["best"]["silhouette"] == pytest.approx(sklearn_silhouette(array, partitions[best]), abs=1e-6)


def test_partitions_that_differ_in_names_only_count_once():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(3, 5, generator=generator).repeat_interleave(8, dim=0) * 50
    points = points + torch.randn(24, 5, generator=generator)
    names = {tuple(kmeans_labels(points, 3, seed=seed).tolist()) for seed in range(8)}
    assert len(names) > 1, "the clusters have different numbers, or the test shows nothing"
    spread = kmeans_spread(points, 3, seeds=8)
    assert spread["distinct"] == 1
    assert spread["silhouette"]["sd"] == 0.0
    assert spread["silhouette"]["low"] == spread["best"]["silhouette"]
    assert spread["best"]["seed"] == 0


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_constant_embeddings_are_undefined_with_a_reason():
    spread = kmeans_spread(torch.full((8, 3), 0.7), 2, seeds=2, restarts=1)
    assert spread["distinct"] == 1
    assert spread["best"]["inertia"] == 0.0
    for part in (spread["silhouette"], spread["davies_bouldin"]):
        assert part["mean"] is None
        assert "needs 2 to 7 distinct labels for 8 texts, got 1" in part["mean_reason"]
    assert spread["best"]["davies_bouldin"] is None
    assert finite(spread)


@pytest.mark.parametrize(("k", "reason"), [(1, "got 1"), (5, "got 5")])
def test_one_cluster_and_a_cluster_for_each_text_are_undefined(k, reason):
    spread = kmeans_spread(cloud(n=5), k, seeds=2, restarts=1)
    assert spread["silhouette"]["high"] is None
    assert reason in spread["silhouette"]["high_reason"]
    assert spread["best"]["inertia"] == pytest.approx(0.0, abs=1e-9) if k == 5 else spread["best"]["inertia"] > 1


@pytest.mark.parametrize("function", [kmeans_labels, kmeans_spread])
def test_bad_input_is_refused(function):
    points = cloud(n=5)
    with pytest.raises(ValueError, match="expected 1 to 5 clusters for 5 texts, got 6"):
        function(points, 6)
    with pytest.raises(ValueError, match="expected 1 to 5 clusters for 5 texts, got 0"):
        function(points, 0)
    points[2, 1] = math.nan
    with pytest.raises(ValueError, match="NaN or infinity in 1 of 5 rows"):
        function(points, 2)


def test_one_seed_has_no_spread():
    with pytest.raises(ValueError, match="seeds: expected at least 2 to compare, got 1"):
        kmeans_spread(cloud(), 3, seeds=1)
