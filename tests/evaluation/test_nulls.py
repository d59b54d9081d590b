"""The permutation null against explicit shuffles and its own theory."""

import math
from functools import cache
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.stats import binom, chisquare, kstest
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


@cache
def p_of_meaningless_labels(count, labels=tuple(LABELS)):
    """p of labels that mean nothing, on `count` data sets, each with its own shuffles: 1/100, 2/100 ... 1."""
    n = len(labels)
    return np.array(
        [permutation_null(noise(seed=seed, n=n, d=4), labels, permutations=99, seed=seed).p for seed in range(count)]
    )


@pytest.mark.parametrize(
    "labels", [tuple(LABELS), (0,) * 3 + (1,) * 6 + (2,) * 9], ids=["equal sizes", "unequal sizes"]
)
def test_p_is_uniform_when_the_labels_mean_nothing(labels):
    p = p_of_meaningless_labels(400, labels)
    ranks = np.rint(100 * p).astype(int)
    np.testing.assert_allclose(p, ranks / 100)
    assert chisquare(np.bincount((ranks - 1) // 10, minlength=10)).pvalue > 0.001
    # Kolmogorov-Smirnov with each p spread over its step, which makes a discrete uniform a continuous one
    assert kstest(p - np.random.default_rng(0).random(400) / 100, "uniform").pvalue > 0.001


def test_a_level_is_kept_as_promised():
    """At most a share alpha of meaningless labels reaches p <= alpha, up to the noise of 400 draws."""
    p = p_of_meaningless_labels(400)
    for level in (0.05, 0.1, 0.5):
        assert binom.ppf(0.001, 400, level) <= (p <= level + 1e-9).sum() <= binom.ppf(0.999, 400, level)


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


@cache
def p_of_a_crossed_design(texts, within, count=100):
    """p of six meaningless labels, each in every one of four windows with so many texts, where embeddings follow the windows."""
    labels = torch.arange(6).repeat_interleave(4 * texts)
    windows = torch.arange(4).repeat(6).repeat_interleave(texts)
    found = []
    for seed in range(count):
        points = noise(seed, n=24 * texts) + 6 * torch.eye(4, 8, dtype=torch.float64)[windows]
        strata = windows if within else None
        found.append(permutation_null(points, labels, strata=strata, permutations=99, seed=seed).p)
    return np.array(found)


@pytest.mark.parametrize("texts", [1, 4])
def test_shuffles_within_windows_are_exact_in_a_crossed_design(texts):
    p = p_of_a_crossed_design(texts, True)
    assert chisquare(np.bincount(np.rint(100 * p - 1).astype(int) // 20, minlength=5)).pvalue > 0.001
    assert binom.ppf(0.001, 100, 0.1) <= (p <= 0.1 + 1e-9).sum() <= binom.ppf(0.999, 100, 0.1)


def test_free_shuffles_err_in_a_crossed_design_either_way():
    """The reason to have strata: the balance of the design is itself unlike chance."""
    assert np.median(p_of_a_crossed_design(1, False)) > 0.8
    assert np.median(p_of_a_crossed_design(4, False)) < 0.2


def test_shuffles_within_strata_keep_each_stratums_labels():
    from evaluation.nulls import _shuffles

    codes, strata = torch.tensor([0, 1, 2, 3, 4, 5]), torch.tensor([1, 0, 1, 0, 2, 1])
    shuffled = _shuffles(codes, strata, 50, 0)
    for stratum in range(3):
        places = strata == stratum
        assert (shuffled[:, places].sort(dim=1).values == codes[places]).all()
    assert len({tuple(row) for row in shuffled.tolist()}) == 12, "3! x 2! x 1!"
