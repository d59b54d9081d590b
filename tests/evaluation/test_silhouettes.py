"""Silhouettes of each text and of each label, Euclidean and cosine, against scikit-learn and the definition as loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import silhouette_samples as sklearn_samples
from sklearn.metrics import silhouette_score as sklearn_score

from evaluation import centring, distances, silhouette_by_label, silhouette_samples, silhouette_score, silhouettes
from evaluation.clustering import silhouette_and_reason

METRICS = ("euclidean", "cosine")


def cloud(seed=0, n=60, d=12, k=4, separation=1.0, dtype=torch.float64):
    """n Gaussian points around k centres, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % k
    centres = separation * torch.randn(k, d, generator=generator, dtype=torch.float64)
    return (torch.randn(n, d, generator=generator, dtype=torch.float64) + centres[labels]).to(dtype), labels


def concentrated(n=80, d=64):
    """Cosines all near 1: a common offset, and a spread of 1e-4 of its norm."""
    points, labels = cloud(seed=3, n=n, d=d)
    offset = torch.randn(d, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return (offset + 1e-4 * offset.norm() / points.norm(dim=1).mean() * points).float(), labels


def oracle(points, labels, metric):
    """scikit-learn in float64: of centred rows, and by cosine of half the squared distances of centred unit rows."""
    exact = points.double().numpy()
    if metric == "euclidean":
        return sklearn_samples(exact - exact.mean(axis=0), labels.numpy())
    unit = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    table = np.square(unit[:, None] - unit[None]).sum(axis=2) / 2
    return sklearn_samples(table, labels.numpy(), metric="precomputed")


def slow_samples(points, labels, distance):
    """Rousseeuw's definition as loops."""
    scores = []
    for i, x in enumerate(points):
        groups = {}
        for j, y in enumerate(points):
            if i != j:
                groups.setdefault(labels[j], []).append(distance(x, y))
        if labels[i] not in groups:
            scores.append(0.0)
            continue
        a = np.mean(groups.pop(labels[i]))
        b = min(np.mean(others) for others in groups.values())
        scores.append((b - a) / max(a, b))
    return scores


def cosine_distance(x, y):
    return 1 - sum(a * b for a, b in zip(x, y, strict=True)) / math.hypot(*x) / math.hypot(*y)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "data",
    [cloud(separation=0.0), cloud(), cloud(separation=5.0), cloud(dtype=torch.float32), concentrated()],
    ids=["random", "clustered", "far apart", "float32", "concentrated"],
)
def test_samples_equal_scikit_learn(data, metric):
    points, labels = data
    expected = oracle(points, labels, metric)
    np.testing.assert_allclose(silhouette_samples(points, labels, metric=metric), expected, atol=1e-6)
    assert silhouette_score(points, labels, metric=metric) == pytest.approx(expected.mean(), abs=1e-7)


def test_cosine_is_scikit_learns_own_where_that_keeps_its_digits():
    points, labels = cloud()
    expected = sklearn_score(points.numpy(), labels.numpy(), metric="cosine")
    assert silhouette_score(points, labels, metric="cosine") == pytest.approx(expected, abs=1e-10)
    points, labels = concentrated()
    naive = sklearn_samples(points.numpy(), labels.numpy(), metric="cosine")
    assert np.abs(naive - oracle(points, labels, "cosine")).max() > 0.01, "float32 in scikit-learn does not"


@given(seed=st.integers(0, 2**16), n=st.integers(4, 14), k=st.integers(2, 5), d=st.integers(2, 4))
def test_samples_equal_the_definition_as_loops(seed, n, k, d):
    points, labels = cloud(seed=seed, n=n, d=d, k=min(k, n - 1))
    rows, marks = points.tolist(), labels.tolist()
    for metric, distance in (("euclidean", math.dist), ("cosine", cosine_distance)):
        found = silhouette_samples(points, labels, metric=metric)
        np.testing.assert_allclose(found, slow_samples(rows, marks, distance), atol=1e-9)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("sums", [1, 1 << 22])
def test_tiles_chunks_and_kept_sums_do_not_matter(metric, sums, monkeypatch):
    points, labels = cloud(n=50)
    labels[7] = 9
    whole = silhouette_samples(points, labels, metric=metric)
    monkeypatch.setattr(distances, "TILE_ELEMENTS", 130)
    monkeypatch.setattr(centring, "CHUNK_ELEMENTS", 40)
    for module in ("silhouettes", "cosine_silhouettes"):
        monkeypatch.setattr(f"evaluation.{module}.SUMS_ELEMENTS", sums)
    np.testing.assert_allclose(silhouette_samples(points, labels, metric=metric), whole, atol=1e-12)


def test_float32_products_change_nothing_that_is_read(monkeypatch):
    monkeypatch.setattr(distances, "LARGE", 1)
    monkeypatch.setattr(distances, "TILE_ELEMENTS", 2 * 32**2)
    for points, labels in (cloud(n=200, d=48), cloud(n=200, d=48, separation=50.0), concentrated(n=200)):
        found = silhouette_samples(points, labels)
        np.testing.assert_allclose(found, oracle(points, labels, "euclidean"), atol=1e-6)


def test_labels_inside_tight_groups_far_apart_keep_their_digits(monkeypatch):
    """Float64's |x|^2 + |y|^2 - 2xy, and so scikit-learn, is off by 1e-3 here; the coordinates are not."""
    monkeypatch.setattr(distances, "LARGE", 1)
    monkeypatch.setattr(distances, "TILE_ELEMENTS", 2 * 32**2)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 4
    centres = 100 * torch.randn(2, 48, generator=generator, dtype=torch.float64)
    points = centres[labels % 2] + 1e-5 * torch.randn(120, 48, generator=generator, dtype=torch.float64)
    table = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    expected = sklearn_samples(table, labels.numpy(), metric="precomputed")
    np.testing.assert_allclose(silhouette_samples(points, labels), expected, atol=1e-6)
    assert np.abs(oracle(points, labels, "euclidean") - expected).max() > 1e-5


def test_from_so_many_points_on_that_float32_is_used_scikit_learn_is_met_too():
    points, labels = cloud(n=distances.LARGE + 4, d=24, dtype=torch.float32)
    found = silhouette_samples(points, labels)
    np.testing.assert_allclose(found, oracle(points, labels, "euclidean"), atol=1e-6)


def test_many_labellings_agree_with_one_at_a_time(monkeypatch):
    points, labels = cloud(n=30)
    points -= points.mean(dim=0)
    labellings = torch.stack([labels.roll(step) for step in range(5)])
    expected = [silhouettes.sample_silhouettes(points, row, 4).mean() for row in labellings]
    for elements in (1 << 22, 50):
        monkeypatch.setattr(silhouettes, "SUMS_ELEMENTS", elements)
        found = silhouettes.mean_silhouettes(points, labellings, 4)
        torch.testing.assert_close(found, torch.stack(expected), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_labels_score_the_mean_of_their_texts_in_order_of_appearance(metric):
    points, labels = cloud(n=21, k=3)
    names = [("prime", "<even>", "lone\t")[int(label)] for label in labels[:-1].tolist()]
    names = ["<even>" if name == "lone\t" and row > 2 else name for row, name in enumerate(names)]
    found = silhouette_by_label(points[:-1], names, metric=metric)
    samples = silhouette_samples(points[:-1], names, metric=metric).tolist()
    assert list(found) == ["prime", "<even>", "lone\t"]
    for name, score in found.items():
        mine = [sample for sample, other in zip(samples, names, strict=True) if other == name]
        assert score == pytest.approx(sum(mine) / len(mine), abs=1e-12)
    assert found["lone\t"] == 0.0


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("points", "labels", "reason"),
    [
        (torch.eye(4), ["a"] * 4, "needs 2 to 3 distinct labels for 4 texts, got 1"),
        (torch.eye(4), [0, 1, 2, 3], "needs 2 to 3 distinct labels for 4 texts, got 4"),
        (torch.eye(2), [0, 1], "needs at least 3 texts with 2 distinct labels, got 2 texts"),
        (torch.full((6, 3), 0.1), [0, 1] * 3, "all embeddings"),
    ],
    ids=["one label", "singletons only", "two texts", "constant"],
)
def test_undefined_is_nan_everywhere_with_its_reason(points, labels, reason, metric):
    score, found = silhouette_and_reason(points, labels, metric=metric)
    assert math.isnan(score)
    assert reason in str(found)
    assert math.isnan(silhouette_score(points, labels, metric=metric))
    samples = silhouette_samples(points, labels, metric=metric)
    assert samples.shape == (len(labels),)
    assert bool(samples.isnan().all())
    assert all(math.isnan(value) for value in silhouette_by_label(points, labels, metric=metric).values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_one_direction_at_many_lengths_has_no_cosine_silhouette(dtype):
    row = torch.randn(1, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = (row * torch.linspace(0.1, 9, 12, dtype=torch.float64)[:, None]).to(dtype)
    score, reason = silhouette_and_reason(rows, [0, 1, 2] * 4, metric="cosine")
    assert math.isnan(score)
    assert reason == "all embeddings point in one direction"
    assert not math.isnan(silhouette_score(rows, [0, 1, 2] * 4))


def test_a_zero_row_has_no_direction():
    points, labels = cloud(n=8)
    points[[2, 5]] = 0.0
    score, reason = silhouette_and_reason(points, labels, metric="cosine")
    assert math.isnan(score)
    assert reason == "2 of 8 embeddings are zero and have no direction"


def test_equal_directions_of_two_labels_score_zero_not_noise():
    points = torch.tensor([[1.0, 3.0, 0.3]] * 4 + [[-2.0, 0.1, 0.7]] * 3, dtype=torch.float64)
    labels = [0, 1, 0, 1, 2, 2, 2]
    assert silhouette_samples(points, labels, metric="cosine").tolist() == [0.0] * 4 + [1.0] * 3


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
def test_cosine_knows_no_scale(scale):
    points, labels = cloud()
    expected = silhouette_score(points, labels, metric="cosine")
    assert silhouette_score(scale * points, labels, metric="cosine") == pytest.approx(expected, abs=1e-12)


def test_cosine_ignores_lengths_where_euclid_does_not():
    points, labels = cloud()
    stretched = points * torch.linspace(0.5, 20, len(points), dtype=torch.float64)[:, None]
    cosine = [silhouette_score(rows, labels, metric="cosine") for rows in (points, stretched)]
    euclidean = [silhouette_score(rows, labels) for rows in (points, stretched)]
    assert cosine[0] == pytest.approx(cosine[1], abs=1e-12)
    assert abs(euclidean[0] - euclidean[1]) > 0.05


def test_tight_labels_beside_a_far_one_keep_their_digits_by_cosine():
    """a and b a million times smaller than the spread of all directions."""
    generator = torch.Generator().manual_seed(0)
    near = torch.tensor([1.0, 0.0, 0.0]) + 1e-6 * torch.randn(12, 3, generator=generator, dtype=torch.float64)
    points = torch.cat([near, -near[:6] + torch.tensor([0.0, 1.0, 0.0])])
    labels = torch.tensor([0, 1] * 6 + [2] * 6)
    found = silhouette_samples(points, labels, metric="cosine")
    np.testing.assert_allclose(found, oracle(points, labels, "cosine"), atol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_non_finite_rows_are_counted(metric, dtype):
    points, labels = cloud(dtype=dtype)
    points[3, 1], points[50, 0] = math.nan, -math.inf
    with pytest.raises(ValueError, match="NaN or infinity in 2 of 60 rows"):
        silhouette_samples(points, labels, metric=metric)


def test_large_finite_numbers_are_finite():
    points = torch.full((4, 3), 3e38)
    points[0, 0] = -3e38
    assert silhouette_score(points, [0, 0, 1, 1]) > -1


@pytest.mark.parametrize("metric", METRICS)
def test_labels_that_do_not_fit_are_refused(metric):
    points, labels = cloud(n=6)
    with pytest.raises(ValueError, match="expected 6, one for each row of the embeddings, got 5"):
        silhouette_by_label(points, labels[:5], metric=metric)
    with pytest.raises(ValueError, match=r"got none in 1 rows \(first: row 0\)"):
        silhouette_samples(points, [None, *"babab"], metric=metric)


def test_another_metric_is_refused():
    points, labels = cloud(n=6)
    with pytest.raises(ValueError, match="metric: expected euclidean or cosine, got 'manhattan'"):
        silhouette_score(points, labels, metric="manhattan")
