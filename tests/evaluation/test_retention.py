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
from torch.utils._python_dispatch import TorchDispatchMode

from evaluation import representational_similarity, retention_report
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


CONSTANTS = ("evaluation.distances.TILE_ELEMENTS", "evaluation.cka.TILE_ELEMENTS")


@pytest.mark.parametrize(("d", "e"), [(7, 5), (210, 200)], ids=["features", "texts"])
def test_tiles_change_nothing(monkeypatch, d, e):
    x, y = related(n=97, d=d, e=e)
    whole = retention_report(x, y)
    for name in CONSTANTS:
        monkeypatch.setattr(name, 250)
    assert retention_report(x, y) == pytest.approx(whole, abs=1e-12)


class Sizes(TorchDispatchMode):
    """Records the largest tensor that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return made


@pytest.mark.parametrize("metric", METRICS)
def test_no_matrix_of_all_pairs_is_made(monkeypatch, metric):
    for name in (*CONSTANTS, "evaluation.representational_similarity.TILE_ELEMENTS"):
        monkeypatch.setattr(name, 2000)
    monkeypatch.setattr("evaluation.representational_similarity.PAIRS", 2000)
    x, y = related(n=800, d=6, e=5)
    with Sizes() as sizes:
        metric(x, y)
    assert 800 * 6 <= sizes.largest <= 800 * 10  # embeddings, neighbours, pairs; all pairs are 640,000


def test_the_largest_tensor_is_seen():
    with Sizes() as sizes:
        torch.ones(30, 2) @ torch.ones(2, 30)
    assert sizes.largest == 900


@pytest.mark.parametrize("n", [2049, 3000, 20001])
def test_a_sample_of_pairs_is_distinct_and_even(n):
    left, right = representational_similarity._sampled_pairs(n)
    assert abs(len(left) - representational_similarity.PAIRS) < 2 * n
    assert torch.unique(torch.minimum(left, right) * n + torch.maximum(left, right)).numel() == len(left)
    assert torch.bincount(torch.cat([left, right])).unique().numel() == 1


def test_rsa_of_a_sample_is_near_that_of_all_pairs(monkeypatch):
    x, y = related(n=400)
    whole = rsa(x, y)
    monkeypatch.setattr("evaluation.representational_similarity.PAIRS", 20_000)
    assert 1e-9 < abs(rsa(x, y) - whole) < 4 / math.sqrt(20_000)
    assert rsa(x, y) == rsa(x, y)
    assert rsa(x, 3 * x + 1) == pytest.approx(1, abs=1e-9)


def test_distances_that_differ_by_rounding_are_ties():
    lattice = torch.tensor([[a, b] for a in range(6) for b in range(5)], dtype=torch.float64) / 3
    turned = lattice @ rotation(0, 2) + 0.1
    other = normal(3, 30, 2)
    expected = spearmanr(np.round(pdist(lattice), 9), pdist(other)).statistic
    assert rsa(turned, other) == pytest.approx(expected, abs=1e-9)
    for metric in METRICS:
        assert metric(turned, lattice) == pytest.approx(1, abs=1e-9)


def test_similarities_without_variance_have_no_cka():
    outlier = torch.zeros(40, 3)
    outlier[7] = 1
    for still in (torch.eye(14), outlier):
        report = retention_report(normal(0, len(still), 3), still)
        assert report["cka"] is None
        assert report["cka_reason"] == "a similarity matrix has no variance"


@pytest.mark.parametrize("size", [1e-140, 1e140])
def test_no_size_is_too_small_or_too_large(size):
    x, y = related()
    assert retention_report(size * x, y / size) == pytest.approx(retention_report(x, y), abs=1e-12)


def test_the_inputs_are_left_alone():
    x, y = related()
    before = x.clone(), y.clone()
    retention_report(x, y)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


def test_arrays_are_measured_as_tensors_are():
    x, y = related()
    assert retention_report(x.numpy(), y.numpy().astype(np.float32)) == retention_report(x, y.float())
