"""Silhouette, Davies-Bouldin and KMeans against scikit-learn, slow loops and a published example."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.metrics import davies_bouldin_score as sklearn_davies_bouldin
from sklearn.metrics import silhouette_score as sklearn_silhouette

from evaluation import clustering_report, davies_bouldin_score, kmeans_labels, silhouette_score, silhouettes
from evaluation.distances import pairwise_distances

COLUMNS = ("silhouette_true", "davies_bouldin_true", "silhouette_kmeans", "davies_bouldin_kmeans")


def cloud(seed=0, n=40, d=12, k=4, separation=1.0, dtype=torch.float64):
    """n Gaussian points around k centres, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % k
    centres = separation * torch.randn(k, d, generator=generator, dtype=torch.float64)
    return (torch.randn(n, d, generator=generator, dtype=torch.float64) + centres[labels]).to(dtype), labels


def concentrated(dtype=torch.float32):
    """Embeddings whose cosines are all near 1: a common offset, and a spread of 1e-4 of its norm."""
    points, labels = cloud(seed=3, n=60, d=64)
    offset = torch.randn(64, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    spread = 1e-4 * offset.norm() / points.norm(dim=1).mean()
    return (offset + spread * points).to(dtype), labels


def exact_oracle(score, embeddings, labels):
    """scikit-learn on the float64 numbers, moved to their mean so that it does not lose digits either."""
    exact = embeddings.double().numpy()
    return score(exact - exact.mean(axis=0), np.asarray(labels))


def slow_silhouette(points, labels):
    """Rousseeuw's definition as loops."""
    scores = []
    for i, x in enumerate(points):
        mates = [math.dist(x, y) for j, y in enumerate(points) if j != i and labels[j] == labels[i]]
        others = {
            label: [math.dist(x, y) for j, y in enumerate(points) if labels[j] == label]
            for label in set(labels) - {labels[i]}
        }
        if not mates:
            scores.append(0.0)
            continue
        a = sum(mates) / len(mates)
        b = min(sum(distances) / len(distances) for distances in others.values())
        scores.append((b - a) / max(a, b) if max(a, b) > 0 else 0.0)
    return sum(scores) / len(scores)


def slow_davies_bouldin(points, labels):
    """Davies and Bouldin's definition as loops."""
    groups = [[x for x, label in zip(points, labels, strict=True) if label == g] for g in sorted(set(labels))]
    centres = [[sum(axis) / len(group) for axis in zip(*group, strict=True)] for group in groups]
    scatter = [
        sum(math.dist(x, centre) for x in group) / len(group) for group, centre in zip(groups, centres, strict=True)
    ]
    worst = [
        max((scatter[i] + scatter[j]) / math.dist(centres[i], centres[j]) for j in range(len(groups)) if j != i)
        for i in range(len(groups))
    ]
    return sum(worst) / len(worst)


@pytest.mark.parametrize("separation", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_scores_equal_scikit_learn(separation, dtype):
    points, labels = cloud(separation=separation, dtype=dtype)
    for ours, theirs in (
        (silhouette_score, sklearn_silhouette),
        (davies_bouldin_score, sklearn_davies_bouldin),
    ):
        assert ours(points, labels) == pytest.approx(exact_oracle(theirs, points, labels), abs=1e-6)


def test_concentrated_embeddings_are_exact_where_plain_float32_distances_fail():
    points, labels = concentrated()
    expected = exact_oracle(sklearn_silhouette, points, labels)
    assert silhouette_score(points, labels) == pytest.approx(expected, abs=1e-6)
    assert davies_bouldin_score(points, labels) == pytest.approx(
        exact_oracle(sklearn_davies_bouldin, points, labels), abs=1e-6
    )
    gram = points @ points.T
    norms = gram.diagonal()
    naive = (norms[:, None] + norms[None, :] - 2 * gram).clamp(min=0).sqrt().fill_diagonal_(0)
    assert abs(sklearn_silhouette(naive.numpy(), labels, metric="precomputed") - expected) > 0.01
    cdist = torch.cdist(points, points, compute_mode="use_mm_for_euclid_dist").fill_diagonal_(0)
    assert abs(sklearn_silhouette(cdist.numpy(), labels, metric="precomputed") - expected) > 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_scored_on_the_numbers_it_holds(dtype):
    points, labels = cloud(dtype=dtype)
    assert silhouette_score(points, labels) == pytest.approx(exact_oracle(sklearn_silhouette, points, labels), abs=1e-6)
    report = clustering_report(points, labels)
    assert all(isinstance(report[column], float) for column in COLUMNS)


@given(seed=st.integers(0, 2**16), n=st.integers(4, 14), k=st.integers(2, 5), d=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_scores_equal_the_definitions_as_loops(seed, n, k, d):
    points, labels = cloud(seed=seed, n=n, d=d, k=min(k, n - 1))
    rows, marks = points.tolist(), labels.tolist()
    assert silhouette_score(points, labels) == pytest.approx(slow_silhouette(rows, marks), abs=1e-9)
    assert davies_bouldin_score(points, labels) == pytest.approx(slow_davies_bouldin(rows, marks), rel=1e-9)


# Rousseeuw 1987, table 1: dissimilarities of twelve countries, lower triangle row by row; figures 2 and 3 print the
# silhouettes of the partitions into two and three clusters.
COUNTRIES = ["BEL", "BRA", "CHI", "CUB", "EGY", "FRA", "IND", "ISR", "USA", "USS", "YUG", "ZAI"]
DISSIMILARITIES = """
    5.58 7.00 6.50 7.08 7.00 3.83 4.83 5.08 8.17 5.83 2.17 5.75 6.67 6.92 4.92 6.42 5.00 5.58 6.00 4.67 6.42
    3.42 5.50 6.42 6.42 5.00 3.92 6.17 2.50 4.92 6.25 7.33 4.50 2.25 6.33 2.75 6.08 6.67 4.25 2.67 6.00 6.17
    6.17 6.92 6.17 5.25 6.83 4.50 3.75 5.75 5.42 6.08 5.83 6.67 3.67 4.75 3.00 6.08 6.67 5.00 5.58 4.83 6.17
    5.67 6.50 6.92
"""
FIGURES = {
    "two": ("0 0 1 1 0 0 1 0 0 1 1 0", 0.28, "0.39 0.22 0.33 0.40 0.20 0.35 -0.04 0.30 0.43 0.34 0.26 0.19"),
    "three": ("0 1 2 2 0 0 1 0 0 2 2 1", 0.33, "0.42 0.25 0.31 0.48 0.02 0.44 0.17 0.37 0.47 0.44 0.31 0.28"),
}


@pytest.mark.parametrize("figure", FIGURES)
def test_rousseeuw_1987_example(figure, monkeypatch):
    table = np.zeros((12, 12))
    table[np.tril_indices(12, -1)] = [float(value) for value in DISSIMILARITIES.split()]
    distances = torch.from_numpy(table + table.T)
    codes = torch.tensor([int(code) for code in FIGURES[figure][0].split()])
    printed = [float(value) for value in FIGURES[figure][2].split()]
    k = int(codes.max()) + 1
    monkeypatch.setattr(silhouettes, "distance_tiles", lambda points: iter([(slice(0, 12), distances)]))
    mean = float(silhouettes.mean_silhouettes(torch.zeros(12, 1, dtype=torch.float64), codes[None, :], k))
    assert mean == pytest.approx(FIGURES[figure][1], abs=0.01)
    counts = torch.bincount(codes).double()
    sums = silhouettes._cluster_sums(distances, codes[None, :], k)
    scores = silhouettes.silhouettes_of_sums(sums, codes[None, :], counts)[0]
    assert dict(zip(COUNTRIES, scores.tolist(), strict=True)) == pytest.approx(
        dict(zip(COUNTRIES, printed, strict=True)), abs=0.01
    )


def test_singletons_score_zero_as_in_scikit_learn():
    points, _ = cloud(n=9)
    labels = [0, 0, 0, 1, 1, 1, 2, 3, 3]
    assert silhouette_score(points, labels) == pytest.approx(sklearn_silhouette(points.numpy(), labels), abs=1e-9)


def test_duplicates_are_exactly_zero_apart():
    points = torch.tensor([[0.3, 1.7], [0.3, 1.7], [-5.1, 2.2], [-5.1, 2.2]])
    assert silhouette_score(points, [0, 0, 1, 1]) == 1.0
    assert davies_bouldin_score(points, [0, 0, 1, 1]) == pytest.approx(0.0, abs=1e-15)


def test_distances_of_near_duplicates_keep_their_digits():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    points[1] = points[0] + 1e-9
    expected = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(pairwise_distances(points, points), expected, rtol=1e-9, atol=0.0)


def test_tiles_do_not_change_the_score(monkeypatch):
    points, labels = cloud(n=50)
    whole = silhouette_score(points, labels)
    monkeypatch.setattr("evaluation.distances.TILE_ELEMENTS", 128)
    monkeypatch.setattr("evaluation.silhouettes.TILE_ELEMENTS", 128)
    assert silhouette_score(points, labels) == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("labels", [["a"] * 6, list(range(6))], ids=["one label", "a label for each text"])
def test_too_few_or_too_many_labels_are_undefined(labels):
    points, _ = cloud(n=6)
    assert math.isnan(silhouette_score(points, labels))
    assert math.isnan(davies_bouldin_score(points, labels))
    report = clustering_report(points, labels)
    for column in COLUMNS:
        assert report[column] is None
        assert "2 to 5 distinct labels" in report[f"{column}_reason"]
    assert report["null"]["p"] is None
    assert "2 to 5 distinct labels" in report["null"]["p_reason"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_collapsed_embeddings_are_undefined_not_perfect(dtype):
    row = torch.randn(1, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    collapsed = row.repeat(12, 1)
    labels = [0, 1, 2] * 4
    assert sklearn_davies_bouldin(np.ones((12, 32)), labels) == 0.0  # what a report must not repeat
    assert math.isnan(davies_bouldin_score(collapsed, labels))
    assert math.isnan(silhouette_score(collapsed, labels))
    report = clustering_report(collapsed, labels)
    assert all(report[column] is None for column in COLUMNS)
    assert report["davies_bouldin_true_reason"] == "all embeddings coincide"


def test_rounding_noise_around_one_point_is_a_collapse_too():
    row = torch.randn(1, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise = 1e-9 * torch.randn(12, 64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert math.isnan(silhouette_score((row + noise).float(), [0, 1] * 6))
    assert not math.isnan(silhouette_score(row + noise, [0, 1] * 6))


def test_coinciding_centroids_have_no_davies_bouldin():
    points = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    report = clustering_report(points, [0, 0, 1, 1])
    assert report["davies_bouldin_true"] is None
    assert "centroids" in report["davies_bouldin_true_reason"]
    assert isinstance(report["silhouette_true"], float)


def test_kmeans_is_scikit_learns_on_the_embeddings_as_they_are():
    points, _ = cloud(separation=0.5, dtype=torch.float32)
    for seed in (0, 1):
        expected = KMeans(4, n_init=10, random_state=seed).fit_predict(points.numpy())
        assert kmeans_labels(points, 4, seed=seed).tolist() == expected.tolist()


def test_report_holds_the_four_columns_of_a_direct_computation():
    points, labels = cloud(separation=0.7, dtype=torch.float32)
    array, true = points.numpy(), labels.numpy()
    found = KMeans(4, n_init=10, random_state=0).fit_predict(array)
    report = clustering_report(points, labels)
    for column, score, marks in zip(
        COLUMNS, (sklearn_silhouette, sklearn_davies_bouldin) * 2, (true, true, found, found), strict=True
    ):
        assert report[column] == pytest.approx(score(array, marks), abs=1e-5)
    assert set(report["null"]) == {"mean", "sd", "z", "p"}


def test_kmeans_refuses_more_clusters_than_texts():
    points, _ = cloud(n=5)
    assert kmeans_labels(points, 5).unique().numel() == 5
    with pytest.raises(ValueError, match="expected 1 to 5 clusters for 5 texts, got 6"):
        kmeans_labels(points, 6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("function", [silhouette_score, davies_bouldin_score, clustering_report])
def test_non_finite_embeddings_are_refused_with_their_count(function, bad):
    points, labels = cloud()
    points[3, 1] = points[7, 0] = bad
    with pytest.raises(ValueError, match=r"NaN or infinity in 2 of 40 rows; check the model's weights"):
        function(points, labels)


def test_labels_that_do_not_fit_are_refused():
    points, labels = cloud(n=6)
    with pytest.raises(ValueError, match="expected 6, one for each row of the embeddings, got 5"):
        silhouette_score(points, labels[:5])
    with pytest.raises(ValueError, match=r"got none in 1 rows \(first: row 2\)"):
        silhouette_score(points, ["a", "b", None, "a", "b", "a"])


def test_embeddings_must_be_a_matrix():
    with pytest.raises((ValueError, TypeError)):  # TypeError under the shape checks of the tests
        silhouette_score(torch.zeros(4), [0, 0, 1, 1])


def test_labels_of_any_kind_give_the_same_number():
    points, labels = cloud(n=12, k=3)
    expected = silhouette_score(points, labels)
    assert silhouette_score(points.numpy(), labels.numpy()) == expected
    assert silhouette_score(points, [f"family {label}\t<b>|\n" for label in labels.tolist()]) == expected
    assert silhouette_score(points, list(labels)) == expected


def test_gradient_and_device_of_the_input_do_not_matter():
    points, labels = cloud()
    expected = silhouette_score(points, labels)
    assert silhouette_score(points.clone().requires_grad_(), labels) == expected


@given(seed=st.integers(0, 2**16), scale=st.floats(1e-3, 1e3), shift=st.floats(-50, 50))
@settings(max_examples=30, deadline=None)
def test_invariances(seed, scale, shift):
    """Translation, rotation, rescaling, order of the texts and names of the labels change nothing."""
    points, labels = cloud(seed=seed, n=20, d=6)
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    order = torch.randperm(20, generator=generator)
    moved = scale * (points @ rotation) + shift
    names = torch.randperm(100, generator=generator)[:4]
    for score in (silhouette_score, davies_bouldin_score):
        assert score(moved[order], names[labels[order]]) == pytest.approx(score(points, labels), rel=1e-8, abs=1e-9)
