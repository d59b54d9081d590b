"""Planted truths: noise of known size, distances of known size, and what theory says each metric must then be.

Tolerances are about four standard deviations of the sampling, not of the implementation: wide d or many texts make the
closed forms (limits in d or n) narrow enough to tell one formula from another.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from evaluation import (
    alignment,
    anisotropy,
    calinski_harabasz_score,
    davies_bouldin_score,
    debiased_cka,
    effective_rank,
    knn_overlap,
    linear_probe_accuracy,
    neighbour_accuracy,
    procrustes_similarity,
    rsa,
    silhouette_score,
    uniformity,
)

NOISES = [0.0, 0.25, 0.5, 1.0, 2.0]


def normal(seed, n, d):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("size", NOISES)
def test_retention_under_noise_of_known_size(size):
    """y = x + s z for independent x and z of unit covariance: cov(x, y) = I and cov(y) = (1 + s^2) I."""
    n, d = 800, 20
    x = normal(0, n, d)
    y = x + size * normal(1, n, d)
    kept = 1 / (1 + size**2)
    assert debiased_cka(x, y) == pytest.approx(kept, abs=0.02)
    assert procrustes_similarity(x, y) == pytest.approx(math.sqrt(kept), abs=0.02)
    # Squared distances correlate as 1 / (1 + s^2); Spearman's for two normal variables of that correlation:
    assert rsa(x, y) == pytest.approx(6 / math.pi * math.asin(kept / 2), abs=0.02)


def test_neighbours_are_lost_monotonically_down_to_chance():
    n = 400
    x, noise = normal(2, n, 10), normal(3, n, 10)
    kept = [knn_overlap(x, x + size * noise) for size in [*NOISES, 300.0]]
    assert kept[0] == 1
    assert all(more > less + 0.02 for more, less in pairwise(kept))
    assert kept[-1] == pytest.approx(10 / (n - 1), abs=0.012)


def test_columns_that_are_not_kept_cost_what_they_weighed():
    """Half of the columns, of equal weight: |cov(x, y)|^2 = d/2, |cov x| |cov y| = sqrt(d * d/2)."""
    x = normal(4, 1500, 16)
    assert debiased_cka(x, x[:, :8]) == pytest.approx(math.sqrt(0.5), abs=0.02)
    assert procrustes_similarity(x, x[:, :8]) == pytest.approx(math.sqrt(0.5), abs=0.02)


def two_clouds(apart, *, d=1500, each=40):
    """Two wide clouds of unit covariance whose centres are +-apart / 2 along one axis."""
    x = normal(5, 2 * each, d)
    side = torch.tensor([0.5] * each + [-0.5] * each, dtype=torch.float64)
    x[:, 0] += apart * side
    return x, ["left" if s < 0 else "right" for s in side.tolist()]


@pytest.mark.parametrize("apart", [0.0, 20.0, 60.0, 200.0])
def test_two_clouds_at_a_known_distance(apart):
    """In many dimensions all distances within are sqrt(2 d) and all between sqrt(2 d + apart^2)."""
    d, each = 1500, 40
    x, labels = two_clouds(apart, d=d, each=each)
    assert silhouette_score(x, labels) == pytest.approx(1 - math.sqrt(2 * d / (2 * d + apart**2)), abs=0.006)
    shared = (apart / 2) ** 2 / ((apart / 2) ** 2 + d)
    expected = 2 * shared / (1 + shared)  # cosines are q within and -q between
    assert silhouette_score(x, labels, metric="cosine") == pytest.approx(expected, abs=0.006)
    scatter, between = math.sqrt(d * (1 - 1 / each)), math.sqrt(apart**2 + 2 * d / each)
    assert davies_bouldin_score(x, labels) == pytest.approx(2 * scatter / between, rel=0.04)
    # The F ratio: E[B] = d + each apart^2 / 2 over E[W / (n - 2)] = d.
    assert calinski_harabasz_score(x, labels) == pytest.approx(1 + each * apart**2 / (2 * d), rel=0.15)


@pytest.mark.parametrize("apart", [0.0, 1.0, 2.0, 4.0])
def test_classifiers_reach_what_two_overlapping_normals_allow(apart):
    """One axis, centres +-apart / 2: a line gets Phi(apart / 2) right, one neighbour E[p^2 + (1 - p)^2]."""
    x, labels = two_clouds(apart, d=1, each=500)

    def density(at):
        left, right = norm.pdf(at + apart / 2), norm.pdf(at - apart / 2)
        return (left**2 + right**2) / (left + right) / 2

    four_sds = 4 * math.sqrt(0.25 / 1000)
    assert neighbour_accuracy(x, labels) == pytest.approx(quad(density, -12, 12)[0], abs=four_sds)
    assert linear_probe_accuracy(x, labels) == pytest.approx(norm.cdf(apart / 2), abs=four_sds)


def equal_axes(rank, n=60, d=24):
    """A centred cloud with `rank` equal singular values."""
    x = normal(6, n, rank)
    left = torch.linalg.qr(x - x.mean(dim=0)).Q
    return left @ torch.linalg.qr(normal(7, d, d)).Q[:rank]


@pytest.mark.parametrize("rank", [1, 2, 7, 24])
def test_equal_axes_are_counted(rank):
    assert effective_rank(equal_axes(rank) + 5) == pytest.approx(rank, abs=1e-6)


def test_an_axis_of_lesser_weight_counts_in_part():
    """Singular values 1 and w: exp of the entropy of 1 / (1 + w) and w / (1 + w)."""
    x = equal_axes(2, d=2)
    values = torch.linalg.svd(x, full_matrices=False)
    for weight in (0.5, 0.1, 0.01):
        share = np.array([1, weight]) / (1 + weight)
        shrunk = values.U @ torch.diag(torch.tensor([1, weight], dtype=torch.float64)) @ values.Vh
        assert effective_rank(shrunk) == pytest.approx(math.exp(-(share * np.log(share)).sum()), abs=1e-9)


@pytest.mark.parametrize("offset", [0.0, 0.5, 1.0, 3.0])
def test_the_cosine_of_an_offset_cloud(offset):
    """A cloud of unit spread around an offset c: cosines c^2 / (1 + c^2), squared distances of directions 2 / (1 + c^2)."""
    n, d = 300, 2000
    x = normal(8, n, d) / math.sqrt(d)
    x[:, 0] += offset
    shared = offset**2 / (1 + offset**2)
    assert anisotropy(x) == pytest.approx(shared, abs=0.004)
    assert uniformity(x) == pytest.approx(-4 * (1 - shared), abs=0.02)
    assert alignment(x, [row % 5 for row in range(n)]) == pytest.approx(2 * (1 - shared), abs=0.02)


@pytest.mark.parametrize("d", [2, 3, 8])
def test_the_uniformity_of_a_sphere(d):
    """The cosine t of two random directions has the density (1 - t^2)^((d - 3) / 2), and |u - v|^2 = 2 - 2 t."""

    def weight(angle):
        return math.sin(angle) ** (d - 2)

    potential = quad(lambda angle: weight(angle) * math.exp(-4 * (1 - math.cos(angle))), 0, math.pi)[0]
    expected = math.log(potential / quad(weight, 0, math.pi)[0])
    assert uniformity(normal(9, 1500, d)) == pytest.approx(expected, abs=0.03)
    assert anisotropy(normal(9, 1500, d)) == pytest.approx(0, abs=0.005)
