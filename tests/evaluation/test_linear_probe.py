"""The probe against scikit-learn's own pipeline, its projection, its folds, and what is undefined."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from evaluation import linear_probe, linear_probe_accuracy
from evaluation.linear_probe import linear_probe_undefined


def cloud(seed=0, n=60, d=8, c=3, separation=0.7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % c
    centres = separation * torch.randn(c, d, generator=generator, dtype=torch.float64)
    return (torch.randn(n, d, generator=generator, dtype=torch.float64) + centres[labels]).to(dtype), labels


@pytest.mark.parametrize("d", [8, 200], ids=["narrow", "wider than the number of texts"])
@pytest.mark.parametrize("size", [1, 3])
def test_accuracy_is_that_of_scikit_learns_pipeline(d, size):
    points, labels = cloud(d=d, separation=0.2 if d > 100 else 0.7)
    blocks = np.arange(60) // size
    deal = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, tol=1e-8))
    predicted = cross_val_predict(pipeline, points.numpy(), labels.numpy(), groups=blocks, cv=deal)
    expected = (predicted == labels.numpy()).mean()
    assert 0.4 < expected < 0.99, "an accuracy that can move"
    assert linear_probe_accuracy(points, labels, blocks=blocks) == pytest.approx(expected, abs=1 / 60 + 1e-9)


def test_the_projection_onto_the_training_texts_is_exact():
    points, labels = cloud(n=30, d=90)
    train, test, marks = points[:20].numpy(), points[20:].numpy(), labels[:20].numpy()
    train, test = train - train.mean(axis=0), test - train.mean(axis=0)
    narrow = linear_probe._narrowed(train, test)
    assert narrow[0].shape == (20, 20)
    wide, small = (
        LogisticRegression(tol=1e-10, max_iter=5000).fit(a, marks).predict_proba(b) for a, b in ((train, test), narrow)
    )
    np.testing.assert_allclose(small, wide, atol=1e-6)


def test_a_twin_in_the_same_block_does_not_help():
    points, _ = cloud(n=60, d=100, separation=0.0)
    labels = [i % 3 for i in range(60)]
    noise = 1e-3 * torch.randn(60, 100, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    twins, doubled, blocks = torch.cat([points, points + noise]), labels * 2, list(range(60)) * 2
    assert linear_probe_accuracy(twins, doubled) > 0.9
    assert linear_probe_accuracy(twins, doubled, blocks=blocks) < 0.55


def test_noise_scores_the_share_of_the_largest_label():
    points, _ = cloud(n=300, d=4, separation=0.0)
    labels = [0] * 180 + [1] * 120
    assert linear_probe_accuracy(points, labels) == pytest.approx(0.6, abs=0.08)


def test_separable_labels_are_read_off_whatever_the_offset_and_the_scales():
    points, labels = cloud(separation=4.0)
    scales = 10.0 ** torch.arange(-4, 4, dtype=torch.float64)
    expected = linear_probe_accuracy(points, labels)
    assert expected > 0.95
    assert linear_probe_accuracy(1e4 + points, labels) == expected
    assert linear_probe_accuracy(points * scales, labels) == expected


def test_dimensions_of_rounding_noise_are_left_out():
    """float32 holds 0.7 and its two neighbours; standardised, that noise would outweigh what the probe should see."""
    points, labels = cloud(n=40, d=2, separation=3.0, dtype=torch.float32)
    flat = torch.full((40, 50), 0.7)
    noisy = torch.rand(40, 50, generator=torch.Generator().manual_seed(0)) < 0.5
    flat = torch.where(noisy, flat, torch.nextafter(flat, torch.tensor(1.0)))
    constant = torch.cat([points, flat], dim=1)
    assert linear_probe_accuracy(constant, labels) == linear_probe_accuracy(points, labels)


def test_only_the_seed_is_random():
    points, labels = cloud(separation=0.5)
    scores = [linear_probe_accuracy(points, labels, seed=seed) for seed in range(4)]
    assert scores == [linear_probe_accuracy(points, labels, seed=seed) for seed in range(4)]
    assert len(set(scores)) > 1


def test_the_folds_are_fewer_where_a_label_has_few_blocks():
    x = torch.tensor([[0.0], [1.0], [2.0], [3.0], [10.0], [11.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # scikit-learn warns of a label with fewer members than folds
        assert linear_probe_accuracy(x, ["a", "a", "a", "a", "b", "b"]) == 1.0


def test_a_fold_may_leave_one_label_to_train_on():
    """The two blocks hold one label each but for one text: whichever is held out, the other has its label nearly alone."""
    x = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
    labels, blocks = ["a", "a", "b", "b", "b", "a"], [0, 0, 1, 0, 1, 1]
    assert 0.0 <= linear_probe_accuracy(x, labels, blocks=blocks) <= 1.0
    right = linear_probe._right(np.zeros((2, 1)), np.array([1, 1]), np.zeros((3, 1)), np.array([1, 0, 1]))
    assert right == 2


def test_half_precision_and_gradients():
    points, labels = cloud(dtype=torch.bfloat16)
    expected = linear_probe_accuracy(points.double(), labels)
    assert linear_probe_accuracy(points, labels) == expected
    assert linear_probe_accuracy(points.clone().requires_grad_(), labels) == expected


UNDEFINED = {
    "one label": ({"labels": ["a"] * 6}, "needs at least 2 distinct labels, got 1"),
    "a singleton": ({"labels": ["a", "a", "a", "b", "b", "c"]}, "needs at least 2 blocks for every label, got 1"),
    "a label in one block": ({"blocks": [0, 1, 2, 3, 3, 3]}, "needs at least 2 blocks for every label, got 1"),
    "constant": ({"embeddings": torch.full((6, 3), 0.7)}, "no dimension varies by more than its rounding"),
}


@pytest.mark.parametrize("case", UNDEFINED)
def test_what_is_undefined_says_why(case):
    points, _ = cloud(n=6)
    changes, reason = UNDEFINED[case]
    arguments = {"embeddings": points, "labels": ["a", "a", "a", "b", "b", "b"]} | changes
    assert math.isnan(linear_probe_accuracy(**arguments))
    assert reason in linear_probe_undefined(**arguments)
    assert linear_probe_undefined(points, [0, 0, 0, 1, 1, 1]) is None


def test_bad_input_is_refused():
    points, labels = cloud(n=6)
    with pytest.raises(ValueError, match="folds: expected at least 2, got 1"):
        linear_probe_accuracy(points, labels, folds=1)
    with pytest.raises(ValueError, match="blocks: expected 6, one for each text, got 5"):
        linear_probe_accuracy(points, labels, blocks=[0, 1, 2, 3, 4])
    with pytest.raises(ValueError, match="labels: .* got none in 1 rows"):
        linear_probe_accuracy(points, ["a", None, "b", "a", "a", "b"])
    points[3, 1] = math.nan
    with pytest.raises(ValueError, match="NaN or infinity in 1 of 6 rows"):
        linear_probe_accuracy(points, labels)
