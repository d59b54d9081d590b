"""Retention against loop transcriptions and scipy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from sklearn.neighbors import NearestNeighbors

from evaluation import retention_report
from evaluation.retention import debiased_cka, knn_overlap, procrustes_similarity, rsa

METRICS = (debiased_cka, rsa, knn_overlap, procrustes_similarity)
KEYS = ("cka", "rsa", "knn", "procrustes")


def normal(seed, n=30, d=7):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def related(seed=0, n=30, d=7, e=5):
    """Two embeddings that share part of their geometry, of different widths."""
    x = normal(seed, n, d)
    return x, x[:, :e] + 0.7 * normal(seed + 1000, n, e)


def rotation(seed, d):
    return torch.linalg.qr(normal(seed, d, d)).Q


def slow_hsic(k, l):  # noqa: E741
    """HSIC_1 of Song et al. (2012), equation 4, as loops over matrices whose diagonal is 0."""
    n = len(k)
    k = [[0.0 if i == j else float(k[i][j]) for j in range(n)] for i in range(n)]
    l = [[0.0 if i == j else float(l[i][j]) for j in range(n)] for i in range(n)]  # noqa: E741
    trace = sum(k[i][j] * l[j][i] for i in range(n) for j in range(n))
    totals = sum(map(sum, k)) * sum(map(sum, l)) / ((n - 1) * (n - 2))
    chain = sum(k[i][j] * l[j][m] for i in range(n) for j in range(n) for m in range(n))
    return (trace + totals - 2 / (n - 2) * chain) / (n * (n - 3))


@pytest.mark.parametrize("n", [4, 5, 12])
def test_cka_is_the_ratio_of_unbiased_hsics(n):
    x, y = related(n=n)
    k, l = (x @ x.T).tolist(), (y @ y.T).tolist()  # noqa: E741
    expected = slow_hsic(k, l) / math.sqrt(slow_hsic(k, k) * slow_hsic(l, l))
    assert debiased_cka(x, y) == pytest.approx(expected, abs=1e-9)


def test_cka_of_unrelated_embeddings_is_near_zero_however_wide():
    scores = [debiased_cka(normal(seed, 20, 500), normal(seed + 50, 20, 500)) for seed in range(20)]
    assert abs(sum(scores) / 20) < 0.03
    assert min(scores) < 0


def test_rsa_is_scipys_spearman_of_the_distances():
    x, y = related()
    assert rsa(x, y) == pytest.approx(spearmanr(pdist(x), pdist(y)).statistic, abs=1e-9)


def test_rsa_shares_the_ranks_of_ties():
    x, y = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0]]), torch.tensor([[0.0], [3.0], [1.0], [9.0], [4.0]])
    assert rsa(x, y) == pytest.approx(spearmanr(pdist(x), pdist(y)).statistic, abs=1e-12)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_knn_overlap_counts_scikit_learns_neighbours(k):
    x, y = related()
    ours = knn_overlap(x, y, k=k)
    sides = [NearestNeighbors(n_neighbors=k).fit(z.numpy()).kneighbors(return_distance=False) for z in (x, y)]
    shared = [len(set(a) & set(b)) / k for a, b in zip(*sides, strict=True)]
    assert ours == pytest.approx(np.mean(shared), abs=1e-12)


@pytest.mark.parametrize(("n", "d", "e"), [(30, 7, 7), (30, 7, 5), (6, 20, 9)], ids=["tall", "two widths", "wide"])
def test_procrustes_is_scipys_scale(n, d, e):
    x, y = related(n=n, d=d, e=e)
    width = max(d, e)
    padded = []
    for z in (x.numpy(), y.numpy()):
        z = z - z.mean(axis=0)
        padded.append(np.pad(z / np.linalg.norm(z), ((0, 0), (0, width - z.shape[1]))))
    matrix, scale = orthogonal_procrustes(*padded)
    assert procrustes_similarity(x, y) == pytest.approx(scale, abs=1e-9)
    residual = np.linalg.norm(padded[0] @ matrix - padded[1]) ** 2
    assert procrustes_similarity(x, y) == pytest.approx(1 - residual / 2, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_identical_embeddings_are_kept_whole(dtype):
    x = normal(1).to(dtype)
    report = retention_report(x, x)
    assert list(report) == list(KEYS)
    assert all(abs(report[key] - 1) <= 1e-12 for key in KEYS)


def test_float32_far_from_the_origin_is_still_measured():
    x, y = related()
    far = [(1e-4 * z + 3).float() for z in (x, y)]
    expected = [metric(far[0].double() - 3, far[1].double() - 3) for metric in METRICS]
    assert [metric(*far) for metric in METRICS] == pytest.approx(expected, abs=1e-9)


@given(seed=st.integers(0, 2**16), scale=st.floats(1e-3, 1e3), shift=st.floats(-20, 20))
@settings(max_examples=25, deadline=None)
def test_rotation_scale_and_translation_of_either_side_change_nothing(seed, scale, shift):
    x, y = related(seed)
    moved = scale * (y @ rotation(seed, 5)) + shift
    for metric in METRICS:
        assert metric(x, moved) == pytest.approx(metric(x, y), abs=1e-8)
        assert metric(moved, x) == pytest.approx(metric(y, x), abs=1e-8)
        assert metric(x, y) == pytest.approx(metric(y, x), abs=1e-9)
        assert metric(x, y) <= 1.0


def test_more_noise_keeps_less():
    x = normal(0, 60, 10)
    noise = normal(1, 60, 10)
    for metric in METRICS:
        kept = [metric(x + size * noise, x) for size in (0.0, 0.3, 1.0, 3.0)]
        assert kept == sorted(kept, reverse=True)
        assert kept[0] - kept[-1] > 0.3


@pytest.mark.parametrize(("n", "undefined"), [(1, KEYS), (2, KEYS[:3]), (3, ("cka", "knn")), (11, ("knn",)), (12, ())])
def test_too_few_texts_are_undefined_with_a_reason(n, undefined):
    x, y = related(n=n)
    report = retention_report(x, y)
    assert [key for key in KEYS if report[key] is None] == list(undefined)
    assert [key for key in report if key.endswith("_reason")] == [f"{key}_reason" for key in undefined]


def test_constant_embeddings_are_undefined_on_either_side():
    x, flat = normal(0), torch.ones(30, 4)
    for report, word in ((retention_report(flat, x), "all embeddings"), (retention_report(x, flat), "base embeddings")):
        assert all(report[key] is None for key in KEYS)
        assert all(word in report[f"{key}_reason"] for key in KEYS)
    assert all(math.isnan(metric(flat, x)) for metric in METRICS)


def test_equal_distances_have_no_rank_correlation():
    simplex = torch.eye(14, dtype=torch.float64)
    report = retention_report(simplex, normal(0, 14, 3))
    assert report["rsa"] is None
    assert report["rsa_reason"] == "all distances are equal"
    assert math.isfinite(report["procrustes"])


def test_bad_input_names_the_side():
    x, y = related()
    with pytest.raises(ValueError, match="base_embeddings: expected 30 rows"):
        retention_report(x, y[:29])
    y[4, 0] = math.nan
    with pytest.raises(ValueError, match="base_embeddings: expected finite numbers, got NaN or infinity in 1 of 30"):
        retention_report(x, y)
    with pytest.raises(ValueError, match="k: expected at least 1 neighbour, got 0"):
        knn_overlap(x, x, k=0)
