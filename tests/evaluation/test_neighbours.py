"""Neighbour accuracy against scikit-learn and loops; blocks, ties, chance, and what is undefined."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from evaluation import neighbour_accuracy, neighbours
from evaluation.neighbours import neighbour_undefined


def cloud(seed=0, n=40, d=6, c=4, separation=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % c
    centres = separation * torch.randn(c, d, generator=generator, dtype=torch.float64)
    return (torch.randn(n, d, generator=generator, dtype=torch.float64) + centres[labels]).to(dtype), labels


def slow_accuracy(points, labels, blocks, k):
    """The definition for distances that are all different: k votes, ties to the label with the nearer text."""
    right = 0
    for i, x in enumerate(points):
        others = sorted((math.dist(x, y), labels[j]) for j, y in enumerate(points) if blocks[j] != blocks[i])[:k]
        votes = [label for _, label in others]
        most = max(votes.count(label) for label in votes)
        right += next(label for label in votes if votes.count(label) == most) == labels[i]
    return right / len(points)


@given(
    seed=st.integers(0, 2**16),
    n=st.integers(8, 24),
    k=st.integers(1, 5),
    size=st.integers(1, 3),
    metric=st.sampled_from(["euclidean", "cosine"]),
)
@settings(max_examples=50)
def test_accuracy_is_the_definition_as_loops(seed, n, k, size, metric):
    points, labels = cloud(seed=seed, n=n, c=3)
    blocks = [f"block {i // size}" for i in range(n)]
    rows = points / points.norm(dim=1, keepdim=True) if metric == "cosine" else points
    expected = slow_accuracy(rows.tolist(), labels.tolist(), blocks, k)
    assert neighbour_accuracy(points, labels, blocks=blocks, k=k, metric=metric) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_one_neighbour_is_scikit_learns_leaving_one_out(metric):
    points, labels = cloud(n=60, separation=0.7)
    right = []
    for i in range(60):
        rest = np.arange(60) != i
        fitted = KNeighborsClassifier(1, metric=metric, algorithm="brute").fit(
            points.numpy()[rest], labels.numpy()[rest]
        )
        right.append(fitted.predict(points.numpy()[i : i + 1])[0] == labels[i])
    assert 0.3 < np.mean(right) < 0.9, "an accuracy that can move"
    assert neighbour_accuracy(points, labels, metric=metric) == pytest.approx(np.mean(right), abs=1e-12)


def test_a_twin_in_the_same_block_does_not_help():
    """A second window of the same stretch, almost equal to the first: without blocks accuracy is 1 on pure noise."""
    points, _ = cloud(n=60, d=20, separation=0.0)
    labels = [i % 3 for i in range(60)]
    noise = 1e-3 * torch.randn(60, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    twins, doubled = torch.cat([points, points + noise]), labels * 2
    blocks = list(range(60)) * 2
    assert neighbour_accuracy(twins, doubled) == 1.0
    inside = neighbour_accuracy(twins, doubled, blocks=blocks)
    assert inside == pytest.approx(neighbour_accuracy(points, labels), abs=0.05)
    assert inside < 0.55


def test_concentrated_embeddings_are_exact():
    points, labels = cloud(n=60, d=16, separation=0.6)
    exact = neighbour_accuracy(points, labels)
    offset = 1e4 * torch.ones(16, dtype=torch.float64)
    assert neighbour_accuracy(offset + points, labels) == exact
    assert 0.3 < exact < 0.95


def test_tiles_do_not_change_the_accuracy(monkeypatch):
    points, labels = cloud(n=50)
    whole = [neighbour_accuracy(points, labels, k=k) for k in (1, 5)]
    monkeypatch.setattr("evaluation.distances.TILE_ELEMENTS", 128)
    assert [neighbour_accuracy(points, labels, k=k) for k in (1, 5)] == whole


def test_the_order_of_the_texts_decides_nothing_where_distances_are_equal():
    """One number in three values, as the share of odd terms has: every neighbour is one of many at distance 0."""
    values = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 1.0, 1.0, 1.0])[:, None]
    labels = ["even", "even", "even", "prime", "all", "all", "prime", "odd", "odd", "prime"]
    generator = torch.Generator().manual_seed(0)
    expected = neighbour_accuracy(values, labels)
    # each "even" sees two of its own and a prime; "all" and "odd" see one of each; a prime sees none of its own
    assert expected == pytest.approx((3 * 2 / 3 + 2 * 0.5 + 2 * 0.5) / 10)
    for _ in range(5):
        order = torch.randperm(10, generator=generator)
        shuffled = [labels[i] for i in order]
        assert neighbour_accuracy(values[order], shuffled) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", [1, 5])
def test_values_that_many_texts_share_tell_no_more_than_chance(k):
    values = torch.arange(120)[:, None] % 4 / 4
    assert neighbour_accuracy(values, [i % 5 for i in range(120)], k=k) == pytest.approx(5 / 29, abs=0.02)


def test_texts_that_are_equally_far_share_the_votes_left():
    x = torch.tensor([[0.0], [1.0], [-2.0], [2.0], [50.0], [51.0]])
    # of the first text: one vote for the label at 1, and one left for those at -2 and 2: together 1.5 for "b", 0.5 for "a"
    votes = neighbours._shares(
        (x[:1] - x.T).abs().double().index_fill(1, torch.tensor([0]), torch.inf),
        torch.tensor([0, 1, 0, 1, 2, 2]),
        torch.tensor([1]),
        2,
        3,
    )
    assert votes.tolist() == [1.0]


def test_ties_of_votes_go_to_the_nearer_text():
    x = torch.tensor([[0.0], [1.0], [3.0], [40.0], [41.0], [43.0]])
    near = neighbour_accuracy(x, ["a", "a", "b", "c", "c", "c"], k=2)
    far = neighbour_accuracy(x, ["a", "b", "a", "c", "c", "c"], k=2)
    # one "a" and one "b" vote on text 0: with "a" at 1 it is right, with "a" at 3 it is not
    assert near == pytest.approx(5 / 6)
    assert far == pytest.approx(3 / 6)


def test_random_embeddings_score_the_squared_shares_of_the_labels():
    generator = torch.Generator().manual_seed(0)
    labels = [0] * 300 + [1] * 200 + [2] * 100
    points = torch.randn(600, 8, generator=generator)
    chance = (300 * 299 + 200 * 199 + 100 * 99) / (600 * 599)
    assert neighbour_accuracy(points, labels) == pytest.approx(chance, abs=3 * math.sqrt(chance * (1 - chance) / 600))


@given(seed=st.integers(0, 2**16), scale=st.floats(1e-3, 1e3), shift=st.floats(-50, 50))
@settings(max_examples=25)
def test_invariances(seed, scale, shift):
    """Rotation, rescaling, translation, order and names change nothing; translation does under cosine."""
    points, labels = cloud(seed=seed, n=20)
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    order = torch.randperm(20, generator=generator)
    names = torch.randperm(100, generator=generator)[:4]
    turned = scale * (points @ rotation)
    for k in (1, 3):
        expected = neighbour_accuracy(points, labels, k=k)
        assert neighbour_accuracy((turned + shift)[order], names[labels[order]], k=k) == pytest.approx(
            expected, abs=1e-12
        )
        cosine = neighbour_accuracy(points, labels, k=k, metric="cosine")
        assert neighbour_accuracy(turned[order], labels[order], k=k, metric="cosine") == pytest.approx(
            cosine, abs=1e-12
        )


def test_half_precision_and_gradients():
    points, labels = cloud(dtype=torch.bfloat16)
    expected = neighbour_accuracy(points.double(), labels)
    assert neighbour_accuracy(points, labels) == expected
    assert neighbour_accuracy(points.clone().requires_grad_(), labels) == expected
    assert neighbour_accuracy(points.float().numpy(), labels.numpy()) == expected


UNDEFINED = {
    "one label": ({"labels": ["a"] * 6}, "needs at least 2 distinct labels, got 1"),
    "a label for each text": ({"labels": list("abcdef")}, "every label lies in a single block"),
    "a block for each label": ({"blocks": [0, 0, 0, 1, 1, 1]}, "every label lies in a single block"),
    "one block": ({"blocks": [0] * 6}, "needs at least 1 texts outside the block of every text, got 0 for one of them"),
    "too few neighbours": ({"k": 6}, "needs at least 6 texts outside the block of every text, got 5 for one of them"),
    "a large block": ({"k": 3, "blocks": [0, 0, 0, 0, 1, 2]}, "got 2 for one of them"),
    "constant": ({"embeddings": torch.full((6, 3), 0.7)}, "all embeddings coincide"),
    "one direction": (
        {"embeddings": torch.rand(6, 1) * torch.tensor([[0.3, 0.5, 0.7]]), "metric": "cosine"},
        "all embeddings point in one direction",
    ),
    "zero": (
        {"embeddings": torch.eye(6).index_fill(0, torch.tensor([2]), 0.0), "metric": "cosine"},
        "1 of 6 embeddings are zero and have no direction",
    ),
}


@pytest.mark.parametrize("case", UNDEFINED)
def test_what_is_undefined_says_why(case):
    points, _ = cloud(n=6)
    changes, reason = UNDEFINED[case]
    arguments = {"embeddings": points, "labels": ["a", "a", "a", "b", "b", "b"]} | changes
    assert math.isnan(neighbour_accuracy(**arguments))
    assert reason in neighbour_undefined(**arguments)


def test_singletons_count_as_wrong():
    x = torch.tensor([[0.0], [1.0], [10.0], [11.0], [20.0]])
    assert neighbour_accuracy(x, ["a", "a", "b", "b", "c"]) == 4 / 5
    assert neighbour_undefined(x, ["a", "a", "b", "b", "c"]) is None


def test_bad_input_is_refused():
    points, labels = cloud(n=6)
    with pytest.raises(ValueError, match="k: expected at least 1 neighbour, got 0"):
        neighbour_accuracy(points, labels, k=0)
    with pytest.raises(ValueError, match="blocks: expected 6, one for each text, got 5"):
        neighbour_accuracy(points, labels, blocks=[0, 1, 2, 3, 4])
    with pytest.raises(ValueError, match=r"blocks: .* got none in 1 rows \(first: row 5\)"):
        neighbour_accuracy(points, labels, blocks=[0, 1, 2, 3, 4, None])
    with pytest.raises(ValueError, match="labels: expected 6"):
        neighbour_accuracy(points, labels[:5])
    with pytest.raises(ValueError, match="labels: .* got none in 1 rows"):
        neighbour_accuracy(points, ["a", None, "b", "a", "a", "b"])
    points[3, 1] = math.inf
    for metric in ("euclidean", "cosine"):
        with pytest.raises(ValueError, match="NaN or infinity in 1 of 6 rows"):
            neighbour_accuracy(points, labels, metric=metric)
