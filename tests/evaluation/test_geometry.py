"""The shape of one cloud, against slow loops, numpy and closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as tried
from hypothesis import strategies as st

from evaluation import alignment, anisotropy, effective_rank, geometry_report, uniformity

KEYS = ("anisotropy", "effective_rank", "uniformity", "alignment")
LABELS = ["a", "b", "c", "a", "b", "a"] * 4


def normal(seed, n=24, d=5):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(x):
    return [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in x.tolist()]


def squared(u, v):
    return sum((a - b) ** 2 for a, b in zip(u, v, strict=True))


def slow(x, labels):
    """The four definitions as loops over pairs."""
    rows, n = unit(x), len(x)
    pairs = [(i, j) for i in range(n) for j in range(i)]
    cosines = [sum(a * b for a, b in zip(rows[i], rows[j], strict=True)) for i, j in pairs]
    potentials = [math.exp(-2 * squared(rows[i], rows[j])) for i, j in pairs]
    together = [squared(rows[i], rows[j]) for i, j in pairs if labels[i] == labels[j]]
    values = np.linalg.svd(x.numpy() - x.numpy().mean(axis=0), compute_uv=False)
    shares = [v / values.sum() for v in values if v > 1e-12 * values[0]]
    return {
        "anisotropy": sum(cosines) / len(pairs),
        "effective_rank": math.exp(-sum(p * math.log(p) for p in shares)),
        "uniformity": math.log(sum(potentials) / len(pairs)),
        "alignment": sum(together) / len(together),
    }


@pytest.mark.parametrize(("n", "d"), [(24, 5), (6, 40), (24, 1)], ids=["tall", "wide", "one column"])
def test_the_four_are_the_loops_of_their_papers(n, d):
    x = 2 * normal(3, n, d) + 0.5
    assert geometry_report(x, LABELS[:n]) == pytest.approx(slow(x, LABELS[:n]), abs=1e-12)


@pytest.mark.parametrize("size", [1e-140, 1e-30, 1e30, 1e140])
def test_no_size_is_too_small_or_too_large(size):
    x = normal(0)
    assert geometry_report(size * x, LABELS) == pytest.approx(geometry_report(x, LABELS), rel=1e-12)


def test_a_narrow_cone_in_float32_keeps_its_digits():
    cone = (3 + 1e-4 * normal(1)).float()
    found = geometry_report(cone, LABELS)
    exact = slow(cone.double(), LABELS)
    assert 1 - found["anisotropy"] == pytest.approx(1 - exact["anisotropy"], rel=1e-6)
    assert found["uniformity"] == pytest.approx(exact["uniformity"], rel=1e-6)
    assert found["alignment"] == pytest.approx(exact["alignment"], rel=1e-6)
    assert found["effective_rank"] == pytest.approx(exact["effective_rank"], rel=1e-9)


@given(st.integers(0, 2**16), st.integers(2, 12), st.integers(1, 9), st.floats(0, 30))
@tried(max_examples=40)
def test_the_ranges_hold(seed, n, d, offset):
    x = normal(seed, n, d) + offset
    report = geometry_report(x, [0, 0] + [1] * (n - 2))
    assert -1 / (n - 1) - 1e-12 <= report["anisotropy"] <= 1
    assert 1 - 1e-12 <= report["effective_rank"] <= min(n - 1, d) + 1e-9
    assert -8 - 1e-12 <= report["uniformity"] <= 0
    if report["alignment"] is not None:
        assert 0 <= report["alignment"] <= 4 + 1e-12


def test_many_texts_are_walked_in_tiles(monkeypatch):
    x, labels = normal(5, 200, 4), list(range(40)) * 5
    whole = geometry_report(x, labels)
    monkeypatch.setattr("evaluation.distances.TILE_ELEMENTS", 1500)
    monkeypatch.setattr("evaluation.geometry.TILE_ELEMENTS", 30)
    assert geometry_report(x, labels) == pytest.approx(whole, rel=1e-12)


def test_every_pair_of_a_label_counts_alike():
    # Two labels: three texts at right angles to each other (3 pairs, |u - v|^2 = 2), and two equal ones (1 pair, 0).
    x = torch.eye(4)[[0, 1, 2, 3, 3]]
    assert alignment(x, ["a", "a", "a", "b", "b"]) == pytest.approx(6 / 4, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_collapse_has_the_worst_values_and_no_perfect_one(dtype):
    sizes = torch.linspace(1, 3, 24)[:, None]
    row = normal(2, 1, 64)
    report = geometry_report((torch.ones(24, 1) * row).to(dtype), LABELS)
    assert (report["anisotropy"], report["uniformity"]) == pytest.approx((1.0, 0.0), abs=1e-12)
    assert (report["effective_rank"], report["effective_rank_reason"]) == (None, "all embeddings coincide")
    assert (report["alignment"], report["alignment_reason"]) == (None, "all directions coincide")
    # One direction, many lengths: a line of texts, and still no alignment.
    line = geometry_report((sizes * row).to(dtype), LABELS)
    assert line["alignment_reason"] == "all directions coincide"
    assert line["effective_rank"] == pytest.approx(1, abs=0.5)


def test_a_zero_embedding_has_no_direction():
    x = normal(0)
    x[4] = 0
    report = geometry_report(x, LABELS)
    reason = "1 of 24 embeddings are zero and have no direction"
    assert all(report[key] is None and report[f"{key}_reason"] == reason for key in KEYS if key != "effective_rank")
    assert report["effective_rank"] == pytest.approx(slow(x + 7, LABELS)["effective_rank"], rel=1e-9)
    assert all(math.isnan(metric(x)) for metric in (anisotropy, uniformity))
    assert math.isnan(alignment(x, LABELS))


def test_one_text_is_undefined_with_a_reason():
    report = geometry_report(torch.ones(1, 3), ["a"])
    assert all(report[key] is None and report[f"{key}_reason"] == "needs at least 2 texts, got 1" for key in KEYS)
    assert math.isnan(effective_rank(torch.ones(1, 3)))


def test_alignment_needs_labels_that_repeat():
    assert geometry_report(normal(0))["alignment_reason"] == "needs labels"
    assert geometry_report(normal(0), range(24))["alignment_reason"] == "no label has two texts"


def test_bad_input_is_refused():
    x = normal(0)
    with pytest.raises(ValueError, match="labels: expected 24, one for each row of the embeddings, got 23"):
        geometry_report(x, LABELS[:23])
    with pytest.raises(ValueError, match="labels: expected a label for every text, got none in 1 rows"):
        alignment(x, [None, *LABELS[1:]])
    x[3, 1] = math.inf
    for metric in (anisotropy, effective_rank, uniformity, geometry_report):
        with pytest.raises(ValueError, match="embeddings: expected finite numbers, got NaN or infinity in 1 of 24"):
            metric(x)
