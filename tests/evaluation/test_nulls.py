"""The permutation null against explicit shuffles and its own theory."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.metrics import silhouette_score as sklearn_silhouette

from evaluation.nulls import permutation_null


def noise(seed=0, n=24, d=8):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LABELS = [label for label in range(6) for _ in range(4)]


def test_moments_agree_with_scikit_learn_on_shuffled_labels():
    points = noise()
    random = np.random.default_rng(5)
    scores = [sklearn_silhouette(points.numpy(), random.permutation(LABELS)) for _ in range(300)]
    null = permutation_null(points, LABELS, permutations=4000)
    standard_error = float(np.std(scores) / math.sqrt(len(scores)))
    assert abs(null.mean - np.mean(scores)) < 4 * standard_error
    assert null.sd == pytest.approx(np.std(scores, ddof=1), rel=0.2)
    assert null.z == pytest.approx((sklearn_silhouette(points.numpy(), LABELS) - null.mean) / null.sd, abs=1e-9)


def test_p_agrees_with_all_permutations_of_a_small_case():
    points, labels = noise(seed=4, n=6, d=2), [0, 0, 0, 1, 1, 1]
    observed = sklearn_silhouette(points.numpy(), labels)
    scores = [sklearn_silhouette(points.numpy(), order) for order in set(permutations(labels))]
    exact = np.mean([score >= observed - 1e-12 for score in scores])
    null = permutation_null(points, labels, permutations=4000)
    assert null.p == pytest.approx(exact, abs=0.03)


def test_chance_is_below_zero_for_many_small_classes():
    assert permutation_null(noise(), LABELS).mean < -0.03


def test_planted_classes_are_found_and_p_is_never_zero():
    centres = 8 * torch.eye(6, 8, dtype=torch.float64)
    null = permutation_null(noise() + centres[LABELS], LABELS, permutations=200)
    assert null.p == pytest.approx(1 / 201)
    assert null.z > 5
    assert null.permutations == 200


def test_p_is_uniform_when_the_labels_mean_nothing():
    ps = [
        permutation_null(noise(seed=seed, n=18, d=4), LABELS[:18], permutations=99, seed=seed).p for seed in range(200)
    ]
    levels = np.sort(ps)
    expected = (np.arange(200) + 0.5) / 200
    assert np.abs(levels - expected).max() < 0.115  # Kolmogorov-Smirnov, 1 % level


def test_same_seed_same_null_and_chunks_do_not_matter(monkeypatch):
    points = noise()
    first = permutation_null(points, LABELS, seed=7)
    assert permutation_null(points, LABELS, seed=7) == first
    assert permutation_null(points, LABELS, seed=8) != first
    monkeypatch.setattr("evaluation.silhouettes.TILE_ELEMENTS", 1000)
    monkeypatch.setattr("evaluation.distances.TILE_ELEMENTS", 200)
    small = permutation_null(points, LABELS, seed=7)
    assert small.mean == pytest.approx(first.mean, abs=1e-12)
    assert small.p == first.p


def test_z_is_nan_where_every_shuffle_scores_the_same():
    square = torch.eye(4, dtype=torch.float64)
    null = permutation_null(square, [0, 0, 1, 1])
    assert null.sd == pytest.approx(0.0, abs=1e-12)
    assert math.isnan(null.z)
    assert null.p == 1.0


def test_undefined_silhouette_has_an_undefined_null():
    null = permutation_null(noise(), ["one"] * 24)
    assert all(math.isnan(value) for value in (null.mean, null.sd, null.z, null.p))


def test_one_permutation_is_refused():
    with pytest.raises(ValueError, match="permutations: expected at least 2, got 1"):
        permutation_null(noise(), LABELS, permutations=1)
