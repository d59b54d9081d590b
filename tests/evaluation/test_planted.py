"""Planted truths: a space is turned, scaled, moved, collapsed or given a nuisance, and every metric moves as it must.

How far the metrics move with noise of known size is in test_planted_noise.py.
"""

import math

import pytest
import torch

from evaluation import (
    alignment,
    anisotropy,
    calinski_harabasz_score,
    cluster_agreement,
    davies_bouldin_score,
    debiased_cka,
    effective_rank,
    geometry_report,
    kmeans_labels,
    kmeans_spread,
    knn_overlap,
    linear_probe_accuracy,
    matched_confusion,
    neighbour_accuracy,
    nuisance_table,
    permutation_null,
    procrustes_similarity,
    retention_report,
    rsa,
    silhouette_by_label,
    silhouette_samples,
    silhouette_score,
    uniformity,
)
from evaluation.spectrum_null import gaussian_null


def normal(seed, n, d):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clusters(seed=0, k=4, each=12, d=10, apart=3.0):
    """Gaussian clusters of unit spread around centres of their own; labels; blocks of three neighbouring texts."""
    labels = [label for label in range(k) for _ in range(each)]
    x = apart * normal(seed + 1, k, d)[labels] / math.sqrt(2) + normal(seed + 2, k * each, d)
    return x, labels, [row // 3 for row in range(k * each)]


X, LABELS, BLOCKS = clusters()
BASE = X[:, :7] + 0.5 * normal(9, len(X), 7)
FOUND = kmeans_labels(X, 4)
NUISANCES = {"third column": X[:, 2].tolist(), "position": [float(row) for row in range(len(X))]}


def numbers(table):
    """Every number of a report, by its path."""
    if isinstance(table, dict):
        return {f"{key} {path}": value for key, part in table.items() for path, value in numbers(part).items()}
    if isinstance(table, list):
        return numbers(dict(enumerate(table)))
    return {"": float(table)} if isinstance(table, int | float) else {}


CENTRED = {
    "silhouette": lambda x: silhouette_score(x, LABELS),
    "silhouette of a text": lambda x: silhouette_samples(x, LABELS).tolist(),
    "silhouette of a label": lambda x: silhouette_by_label(x, LABELS),
    "Davies-Bouldin": lambda x: davies_bouldin_score(x, LABELS),
    "Calinski-Harabasz": lambda x: calinski_harabasz_score(x, LABELS),
    "permutation null": lambda x: vars(permutation_null(x, LABELS, permutations=99)),
    "Gaussian null": lambda x: gaussian_null(x, 4, draws=5, restarts=1),
    "KMeans spread": lambda x: {k: v for k, v in kmeans_spread(x, 4, seeds=3).items() if k != "best"},
    "nuisances": lambda x: nuisance_table(x, LABELS, NUISANCES, FOUND),
    "1-NN": lambda x: neighbour_accuracy(x, LABELS, blocks=BLOCKS),
    "5-NN": lambda x: neighbour_accuracy(x, LABELS, blocks=BLOCKS, k=5),
    "linear probe": lambda x: linear_probe_accuracy(x, LABELS, blocks=BLOCKS),
    "CKA": lambda x: debiased_cka(x, BASE),
    "RSA": lambda x: rsa(x, BASE),
    "kNN overlap": lambda x: knn_overlap(x, BASE),
    "Procrustes": lambda x: procrustes_similarity(x, BASE),
    "effective rank": effective_rank,
}
FROM_THE_ORIGIN = {
    "cosine silhouette": lambda x: silhouette_score(x, LABELS, metric="cosine"),
    "cosine silhouette of a text": lambda x: silhouette_samples(x, LABELS, metric="cosine").tolist(),
    "cosine 1-NN": lambda x: neighbour_accuracy(x, LABELS, metric="cosine"),
    "anisotropy": anisotropy,
    "uniformity": uniformity,
    "alignment": lambda x: alignment(x, LABELS),
}
EVERY = CENTRED | FROM_THE_ORIGIN


@pytest.mark.parametrize("name", EVERY)
def test_a_rotation_and_a_rescaling_change_nothing(name):
    turned = X @ torch.linalg.qr(normal(5, 10, 10)).Q
    planted = numbers(EVERY[name](X))
    assert planted
    assert numbers(EVERY[name](turned)) == pytest.approx(planted, abs=1e-7)
    assert numbers(EVERY[name](1e-3 * X)) == pytest.approx(planted, abs=1e-7)
    assert numbers(EVERY[name](250.0 * turned)) == pytest.approx(planted, abs=1e-7)


@pytest.mark.parametrize("name", CENTRED)
def test_a_translation_changes_nothing_that_is_measured_around_the_mean(name):
    assert numbers(CENTRED[name](X + 30)) == pytest.approx(numbers(CENTRED[name](X)), abs=1e-7)


@pytest.mark.parametrize("name", FROM_THE_ORIGIN)
def test_a_translation_changes_what_is_measured_from_the_origin(name):
    # One cluster comes to lie around the origin, where its texts point everywhere.
    moved = X - X[torch.tensor(LABELS) == 0].mean(dim=0)
    change = [abs(b - a) for a, b in zip(*(numbers(EVERY[name](x)).values() for x in (X, moved)), strict=True)]
    assert max(change) > 0.02


@pytest.mark.parametrize("name", EVERY)
def test_columns_of_zeros_change_nothing(name):
    wide = torch.cat([X, torch.zeros(len(X), 40)], dim=1)
    assert numbers(EVERY[name](wide)) == pytest.approx(numbers(EVERY[name](X)), abs=1e-7)


def test_the_order_of_the_texts_changes_nothing():
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(3))
    x, labels = X[order], [LABELS[row] for row in order]
    blocks = [BLOCKS[row] for row in order]
    assert silhouette_score(x, labels) == pytest.approx(silhouette_score(X, LABELS), abs=1e-12)
    assert neighbour_accuracy(x, labels, blocks=blocks) == neighbour_accuracy(X, LABELS, blocks=BLOCKS)
    assert retention_report(x, BASE[order]) == pytest.approx(retention_report(X, BASE), abs=1e-9)
    assert geometry_report(x, labels) == pytest.approx(geometry_report(X, LABELS), abs=1e-9)
    # Retention compares the same texts: with one side in another order, nothing is left.
    assert abs(debiased_cka(x, BASE)) < 0.2
    assert abs(rsa(x, BASE)) < 0.2


COLLAPSE = torch.full((len(X), 10), 3.0)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")  # KMeans is right to complain
@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("anisotropy", "uniformity")])
def test_a_collapse_is_never_a_score(name):
    if name == "nuisances":
        # The clusters are those of another space; the axes are gone.
        table = nuisance_table(COLLAPSE, LABELS, NUISANCES, FOUND)
        assert all(row["share_axis1"] is None and row["share_axis1_reason"] for row in table)
        return
    found = EVERY[name](COLLAPSE)
    if name == "KMeans spread":
        found = {key: found[key] for key in ("silhouette", "davies_bouldin")}
    counted = {path: value for path, value in numbers(found).items() if path not in ("draws ", "permutations ")}
    assert all(math.isnan(value) for value in counted.values())


@pytest.mark.parametrize("d", [1, 64, 1000])
def test_equal_rows_in_float64_are_a_collapse_whatever_their_mean_rounds_to(d):
    row = torch.randn(d, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
    assert math.isnan(silhouette_score(row.expand(24, d).clone(), LABELS[:12] * 2))


def test_a_collapse_is_wholly_anisotropic_and_not_uniform():
    assert (anisotropy(COLLAPSE), uniformity(COLLAPSE)) == pytest.approx((1.0, 0.0), abs=1e-12)


def test_planted_clusters_are_found_and_named():
    x, labels, blocks = clusters(seed=20, apart=30.0)
    found = kmeans_labels(x, 4)
    assert cluster_agreement(labels, found) == pytest.approx({"ari": 1, "nmi": 1, "ami": 1}, abs=1e-12)
    assert neighbour_accuracy(x, labels, blocks=blocks) == linear_probe_accuracy(x, labels, blocks=blocks) == 1
    null = gaussian_null(x, 4, draws=19, restarts=1)
    assert null["silhouette"]["p"] == null["davies_bouldin"]["p"] == pytest.approx(1 / 20)
    assert null["silhouette"]["z"] > 3 > -3 > null["davies_bouldin"]["z"]
    assert permutation_null(x, labels, permutations=99).p == pytest.approx(1 / 100)
    # Of the 48 texts three of each label are called by the name of the next label: the confusion counts exactly these.
    wrong = [(label + (row % 12 < 3)) % 4 for row, label in enumerate(labels)]
    confusion = matched_confusion(wrong, found)
    assert confusion.accuracy == pytest.approx(36 / 48)
    assert confusion.matrix.diagonal().tolist() == [9] * 4
    assert int(confusion.matrix.sum()) == 48


def test_a_gaussian_cloud_is_not_taken_for_clusters():
    cloud = normal(31, 48, 6) * torch.tensor([3.0, 2, 1, 1, 0.5, 0.5])
    null = gaussian_null(cloud, 4, draws=39, restarts=2)
    assert silhouette_score(cloud, kmeans_labels(cloud, 4)) > 0.1  # which looks like something
    assert null["silhouette"]["p"] > 0.05
    assert abs(null["silhouette"]["z"]) < 3


def shifted(strength, *, family=0.0):
    """144 texts of six labels and, independently, three magnitudes; both shift the cloud, each along axes of its own."""
    generator = torch.Generator().manual_seed(42)
    labels = (torch.randperm(144, generator=generator) % 6).tolist()
    magnitudes = torch.arange(144) // 48
    x = normal(40, 144, 12)
    x[:, 0] += strength * magnitudes
    x[:, 6:] += family * torch.eye(6, dtype=torch.float64)[labels]
    return x, labels, [float(magnitude) for magnitude in magnitudes]


CHANCE = pytest.approx(1 / 6, abs=0.12)
"""Within four standard deviations of guessing 144 times."""


def test_a_planted_nuisance_is_named_and_the_family_stays_at_chance():
    x, labels, magnitudes = shifted(12.0)
    found = kmeans_labels(x, 3)
    family, nuisance = nuisance_table(x, labels, {"magnitude": magnitudes}, found)
    assert (family["name"], nuisance["name"]) == ("family", "magnitude")
    assert nuisance["ami_clusters"] == pytest.approx(1, abs=1e-9)
    assert nuisance["share_clusters"] == pytest.approx(1, abs=1e-9)
    # Along its axis the magnitude has a variance of 12^2 * 2/3, beside 1 of noise.
    assert nuisance["share_axis1"] == pytest.approx(96 / 97, abs=0.005)
    assert abs(nuisance["share_axis2"]) < 0.1
    assert abs(nuisance["ami_family"]) < 0.05
    assert all(abs(family[key]) < 0.1 for key in ("ami_clusters", "share_clusters", "share_axis1"))
    null = permutation_null(x, labels, permutations=199)
    assert null.p > 0.05
    assert silhouette_score(x, labels) == pytest.approx(null.mean, abs=3 * null.sd)
    assert neighbour_accuracy(x, labels) == CHANCE
    assert linear_probe_accuracy(x, labels) == CHANCE


def test_without_the_nuisance_nothing_is_named():
    x, labels, magnitudes = shifted(0.0)
    for row in nuisance_table(x, labels, {"magnitude": magnitudes}, kmeans_labels(x, 3)):
        assert all(abs(row[key]) < 0.12 for key in ("ami_clusters", "share_clusters", "share_axis1", "share_axis2"))


def test_a_family_below_a_nuisance_is_seen_by_the_classifiers_and_not_by_the_clusters():
    x, labels, magnitudes = shifted(40.0, family=8.0)
    family, nuisance = nuisance_table(x, labels, {"magnitude": magnitudes}, kmeans_labels(x, 3))
    assert nuisance["ami_clusters"] > 0.99
    assert abs(family["ami_clusters"]) < 0.05
    assert linear_probe_accuracy(x, labels) > 0.95
    assert neighbour_accuracy(x, labels) > 0.95
    assert silhouette_score(x, labels) < 0.1 < 0.5 < silhouette_score(x[:, 6:], labels)


def test_a_twin_in_the_same_block_is_no_knowledge():
    x = normal(50, 120, 8).repeat_interleave(2, dim=0)
    labels = [row % 4 for row in range(120) for _ in range(2)]
    blocks = [row for row in range(120) for _ in range(2)]
    assert neighbour_accuracy(x, labels) == 1
    assert neighbour_accuracy(x, labels, blocks=blocks) == pytest.approx(1 / 4, abs=0.12)
    assert linear_probe_accuracy(x, labels, blocks=blocks) == pytest.approx(1 / 4, abs=0.12)
