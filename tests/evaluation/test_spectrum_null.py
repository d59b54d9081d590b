"""The same-spectrum Gaussian null: its clouds, its sides, and what it says of clusters and of none."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from sklearn.cluster import KMeans
from sklearn.metrics import davies_bouldin_score as sklearn_davies_bouldin
from sklearn.metrics import silhouette_score as sklearn_silhouette

from evaluation.centring import centred
from evaluation.spectrum_null import _clouds, _standing, gaussian_null


def noise(seed=0, n=24, d=40, dtype=torch.float64):
    """Correlated noise: a spectrum that falls, as that of embeddings does."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, d, generator=generator, dtype=torch.float64) / torch.arange(1, d + 1).sqrt()).to(dtype)


def test_moments_of_the_sampled_form_agree_with_a_direct_simulation():
    """Gaussian rows with the sample covariance, drawn in all d dimensions, clustered and scored by scikit-learn."""
    points = noise(n=16, d=20).numpy()
    random, covariance, scores = np.random.default_rng(3), np.cov(points.T), []
    for draw in range(60):
        cloud = random.multivariate_normal(np.zeros(20), covariance, size=16)
        found = KMeans(4, n_init=2, random_state=draw).fit_predict(cloud)
        scores.append((sklearn_silhouette(cloud, found), sklearn_davies_bouldin(cloud, found)))
    null = gaussian_null(torch.from_numpy(points), 4, draws=60, restarts=2, spectrum="sampled")
    for key, drawn in zip(("silhouette", "davies_bouldin"), zip(*scores, strict=True), strict=True):
        error = math.sqrt(2) * float(np.std(drawn)) / math.sqrt(60)
        assert abs(null[key]["mean"] - np.mean(drawn)) < 4 * error
        assert null[key]["sd"] == pytest.approx(np.std(drawn), rel=0.5)


def test_every_exact_draw_has_the_covariance_spectrum_of_the_embeddings():
    points = noise(n=12, d=30)
    expected = np.linalg.eigvalsh(np.cov(points.numpy().T))[::-1][:11]
    first, second = _clouds(centred(points), 2, torch.Generator().manual_seed(0), exact=True)
    for cloud in (first, second):
        np.testing.assert_allclose(np.linalg.eigvalsh(np.cov(cloud.numpy().T))[::-1], expected, rtol=1e-9)
        assert cloud.mean(dim=0).abs().max() < 1e-12
    assert not torch.allclose(first, second)


def test_sampled_draws_have_it_on_average():
    points = noise(n=12, d=5)
    clouds = torch.cat(list(_clouds(centred(points), 4000, torch.Generator().manual_seed(0), exact=False)))
    expected = np.linalg.eigvalsh(np.cov(points.numpy().T))[::-1]
    np.testing.assert_allclose(clouds.var(dim=0).numpy(), expected, rtol=0.05)


def exact_p(count, restarts=1):
    """p of `count` Gaussian data sets, each with a spectrum of its own, on its grid of 20 values."""
    nulls = [
        gaussian_null(noise(seed, n=14, d=6 + seed % 20), 3, draws=19, restarts=restarts, seed=seed)
        for seed in range(count)
    ]
    return {key: np.array([null[key]["p"] for null in nulls]) for key in ("silhouette", "davies_bouldin")}


def check_uniform(p):
    counts = np.bincount(np.rint(p * 20).astype(int) - 1, minlength=20).reshape(5, 4).sum(axis=1)
    assert counts.sum() == len(p)
    assert chisquare(counts).pvalue > 1e-3


def test_p_of_gaussian_embeddings_is_uniform():
    for p in exact_p(50).values():
        check_uniform(p)


@pytest.mark.slow
def test_p_of_many_gaussian_embeddings_is_uniform():
    for p in exact_p(1000, restarts=2).values():
        check_uniform(p)


def test_sampling_the_spectrum_raises_the_null():
    points = noise(n=24, d=384)
    exact, sampled = (gaussian_null(points, 6, draws=40, restarts=2, spectrum=form) for form in ("exact", "sampled"))
    assert sampled["silhouette"]["mean"] > exact["silhouette"]["mean"] + 0.02
    assert sampled["silhouette"]["p"] > exact["silhouette"]["p"]


def test_clusters_stand_out():
    labels = torch.arange(24) % 4
    clusters = noise(d=8) + 6 * torch.eye(4, 8, dtype=torch.float64)[labels]
    found = gaussian_null(clusters, 4, draws=19, restarts=2)
    assert found["draws"] == 19
    for key in ("silhouette", "davies_bouldin"):
        assert found[key]["p"] == 1 / 20
    assert found["silhouette"]["z"] > 3
    assert found["davies_bouldin"]["z"] < -3
    assert found["silhouette"]["high"] > found["silhouette"]["mean"] > 0  # zero is not what chance gives
    assert found["davies_bouldin"]["low"] < found["davies_bouldin"]["mean"]


def test_each_metric_has_its_own_good_side():
    drawn = [float(value) for value in range(1, 10)]
    high, low = (_standing(2.0, drawn, best=best) for best in ("high", "low"))
    assert high["p"] == (1 + 8) / 10
    assert low["p"] == (1 + 2) / 10
    assert high["z"] == low["z"] == pytest.approx((2 - 5) / np.std(drawn, ddof=1))
    assert high["high"] == pytest.approx(np.quantile(drawn, 0.975))
    assert low["low"] == pytest.approx(np.quantile(drawn, 0.025))


def test_a_draw_without_a_value_never_helps():
    assert _standing(9.0, [1.0, 2.0, math.nan], best="high")["p"] == (1 + 1) / 4


def test_moving_turning_and_rescaling_the_embeddings_changes_nothing():
    points = noise(n=12, d=5)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q
    plain, moved = (gaussian_null(x, 3, draws=5, restarts=1) for x in (points, 3 * points @ turn + 7))
    for key in ("silhouette", "davies_bouldin"):
        assert moved[key] == pytest.approx(plain[key], rel=1e-6)
    assert gaussian_null(points, 3, draws=5, restarts=1) == plain
    assert gaussian_null(points, 3, draws=5, restarts=1, seed=1) != plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_concentrated_cloud_is_measured_around_its_mean(dtype):
    offset = torch.full((1, 40), 100.0 if dtype == torch.float32 else 0.0)
    null = gaussian_null((noise() + offset).to(dtype), 3, draws=4, restarts=1)
    expected = gaussian_null(noise(), 3, draws=4, restarts=1)
    assert null["silhouette"]["mean"] == pytest.approx(expected["silhouette"]["mean"], abs=0.02)


@pytest.mark.parametrize(
    ("points", "k", "reason"),
    [
        (noise(n=8), 1, "needs 2 to 7 distinct labels"),
        (noise(n=8), 8, "needs 2 to 7 distinct labels"),
        (noise(n=8), 20, "needs 2 to 7 distinct labels"),
        (noise(n=2), 2, "needs at least 3 texts"),
        (torch.ones(8, 3), 2, "all embeddings coincide"),
    ],
)
def test_what_is_undefined_is_none_with_its_reason(points, k, reason):
    null = gaussian_null(points, k)
    for group, side in (("silhouette", "high"), ("davies_bouldin", "low")):
        for key in ("mean", "sd", side, "z", "p"):
            assert null[group][key] is None
            assert reason in null[group][f"{key}_reason"]


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="draws: expected at least 2, got 1"):
        gaussian_null(noise(), 3, draws=1)
    with pytest.raises((ValueError, TypeError), match="spectrum"):  # TypeError under the shape checks of the tests
        gaussian_null(noise(), 3, spectrum="same")
    with pytest.raises(ValueError, match="k: expected at least 1 cluster, got 0"):
        gaussian_null(noise(), 0)
    broken = noise()
    broken[2, 1] = math.nan
    with pytest.raises(ValueError, match="NaN or infinity in 1 of 24 rows"):
        gaussian_null(broken, 3)
