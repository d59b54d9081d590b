"""Calinski-Harabasz against scikit-learn, its definition, and its undefined cases; Davies-Bouldin in chunks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import calinski_harabasz_score as sklearn_calinski_harabasz
from sklearn.metrics import davies_bouldin_score as sklearn_davies_bouldin

from evaluation import calinski_harabasz_score, centring, davies_bouldin_score
from evaluation.clustering import calinski_harabasz_and_reason


def cloud(seed=0, n=40, d=12, k=4, separation=1.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % k
    centres = separation * torch.randn(k, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) + centres[labels], labels


def slow_calinski_harabasz(points, labels):
    """Between over within, each a sum of squares over its degrees of freedom, as loops."""
    centre = np.mean(points, axis=0)
    between = within = 0.0
    for label in set(labels):
        group = [x for x, other in zip(points, labels, strict=True) if other == label]
        mean = np.mean(group, axis=0)
        between += len(group) * math.dist(mean, centre) ** 2
        within += sum(math.dist(x, mean) ** 2 for x in group)
    k = len(set(labels))
    return (between / (k - 1)) / (within / (len(points) - k))


@pytest.mark.parametrize("separation", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_calinski_harabasz_equals_scikit_learn(separation, dtype):
    points, labels = cloud(separation=separation)
    points = points.to(dtype)
    expected = sklearn_calinski_harabasz(points.double().numpy(), labels.numpy())
    assert calinski_harabasz_score(points, labels) == pytest.approx(expected, rel=1e-9)


def test_concentrated_embeddings_are_exact():
    points, labels = cloud(d=64)
    offset = torch.randn(64, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    rows = (offset + 1e-4 * offset.norm() / points.norm(dim=1).mean() * points).float()
    exact = rows.double().numpy()
    expected = sklearn_calinski_harabasz(exact - exact.mean(axis=0), labels.numpy())
    assert calinski_harabasz_score(rows, labels) == pytest.approx(expected, rel=1e-6)


@given(seed=st.integers(0, 2**16), n=st.integers(4, 14), k=st.integers(2, 5), d=st.integers(1, 4))
def test_calinski_harabasz_equals_its_definition_as_loops(seed, n, k, d):
    points, labels = cloud(seed=seed, n=n, d=d, k=min(k, n - 1))
    expected = slow_calinski_harabasz(points.tolist(), labels.tolist())
    assert calinski_harabasz_score(points, labels) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("points", "labels", "reason"),
    [
        (torch.eye(5), [0] * 5, "2 to 4 distinct labels for 5 texts, got 1"),
        (torch.eye(5), [0, 1, 2, 3, 4], "2 to 4 distinct labels for 5 texts, got 5"),
        (torch.full((5, 2), 0.1), [0, 0, 1, 1, 1], "all embeddings coincide"),
        (torch.tensor([[0.1, 0.7], [0.1, 0.7], [3.0, 0.3]]), [0, 0, 1], "no cluster has a spread of its own"),
    ],
    ids=["one label", "singletons only", "constant", "points only"],
)
def test_calinski_harabasz_is_undefined_where_scikit_learn_invents_a_number(points, labels, reason):
    score, found = calinski_harabasz_and_reason(points, labels)
    assert math.isnan(score)
    assert math.isnan(calinski_harabasz_score(points, labels))
    assert reason in str(found)


def test_it_moves_as_theory_says():
    """Unmoved by rotation, translation and scale; about 1 under the null; higher the farther labels lie apart."""
    points, labels = cloud(n=200, d=6)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q
    score = calinski_harabasz_score(points, labels)
    assert calinski_harabasz_score(3 * points @ rotation - 7, labels) == pytest.approx(score, rel=1e-9)
    by_separation = [calinski_harabasz_score(*cloud(n=200, d=6, separation=s)) for s in (0.0, 0.5, 1.0, 3.0)]
    assert by_separation == sorted(by_separation)
    null = [calinski_harabasz_score(*cloud(seed=seed, n=60, d=6, separation=0.0)) for seed in range(60)]
    assert np.mean(null) == pytest.approx(1.0, abs=0.15)


def test_chunks_do_not_matter(monkeypatch):
    points, labels = cloud(n=50)
    scores = davies_bouldin_score(points, labels), calinski_harabasz_score(points, labels)
    monkeypatch.setattr(centring, "CHUNK_ELEMENTS", 40)
    assert scores == pytest.approx((davies_bouldin_score(points, labels), calinski_harabasz_score(points, labels)))
    assert scores[0] == pytest.approx(sklearn_davies_bouldin(points.numpy(), labels.numpy()), rel=1e-9)


@pytest.mark.parametrize("function", [calinski_harabasz_score, davies_bouldin_score])
def test_bad_input_is_refused(function):
    points, labels = cloud(n=6)
    with pytest.raises(ValueError, match="expected 6, one for each row of the embeddings, got 5"):
        function(points, labels[:5])
    points[0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN or infinity in 1 of 6 rows"):
        function(points, labels)
