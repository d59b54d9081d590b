"""The match of labels and clusters against all permutations, the order of its columns, and bad input."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics.cluster import contingency_matrix

from evaluation import matched_confusion


def most_right(labels, found):
    """The best one-to-one match, by trying them all."""
    names, clusters = sorted(set(labels)), sorted(set(found))
    if len(names) > len(clusters):
        return most_right(found, labels)
    return max(
        sum(dict(zip(names, choice, strict=False)).get(a) == b for a, b in zip(labels, found, strict=True))
        for choice in permutations(clusters, len(names))
    )


@given(seed=st.integers(0, 2**16), n=st.integers(1, 15), k=st.integers(1, 4), m=st.integers(1, 4))
def test_the_match_is_the_best_of_all(seed, n, k, m):
    random = np.random.default_rng(seed)
    labels, found = random.integers(0, k, n).tolist(), random.integers(0, m, n).tolist()
    confusion = matched_confusion(labels, found)
    assert confusion.accuracy == most_right(labels, found) / n
    assert confusion.labels == tuple(dict.fromkeys(labels))
    counts = contingency_matrix([confusion.labels.index(label) for label in labels], found)
    assert sorted(map(tuple, confusion.matrix.T.tolist())) == sorted(map(tuple, counts.T.tolist()))
    if len(confusion.labels) <= confusion.matrix.shape[1]:
        assert int(confusion.matrix.diagonal().sum()) == most_right(labels, found)


def test_the_names_of_the_clusters_decide_nothing():
    labels = ["even"] * 4 + ["prime"] * 4 + ["odd"] * 4
    found = torch.tensor([1, 1, 1, 0, 2, 2, 2, 2, 0, 0, 1, 3])
    first = matched_confusion(labels, found)
    other = matched_confusion(labels, torch.tensor([7, 9, 1, 3])[found])
    assert torch.equal(first.matrix, other.matrix)
    assert first.accuracy == other.accuracy == 9 / 12


def test_surplus_clusters_come_last():
    confusion = matched_confusion([0, 0, 0, 1, 1, 1], [5, 4, 4, 3, 3, 6])
    assert confusion.matrix.tolist() == [[2, 0, 1, 0], [0, 2, 0, 1]]
    assert confusion.matrix.dtype == torch.int64
    assert confusion.accuracy == 4 / 6


def test_labels_without_a_cluster_count_as_wrong():
    confusion = matched_confusion(["a", "b", "b", "c", "c", "c"], [0, 0, 0, 1, 1, 1])
    assert confusion.matrix.tolist() == [[1, 0], [2, 0], [0, 3]]
    assert confusion.accuracy == 5 / 6


def test_one_cluster_and_one_label():
    assert matched_confusion(["a", "a", "b"], [0, 0, 0]).accuracy == 2 / 3
    assert matched_confusion(["a", "a", "a"], [0, 0, 1]).accuracy == 2 / 3


def test_chance_is_well_above_one_in_six():
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 4)
    scores = [matched_confusion(labels, random.integers(0, 6, 24)).accuracy for _ in range(100)]
    assert np.mean(scores) == pytest.approx(0.40, abs=0.02)


def test_columns_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="found: expected 3, one for each text, got 2"):
        matched_confusion(["a", "a", "b"], [0, 1])
    with pytest.raises(ValueError, match="labels: .* got none in 1 rows"):
        matched_confusion(["a", None, "b"], [0, 1, 1])
    with pytest.raises(ValueError, match="labels: expected at least one, got none"):
        matched_confusion([], [])
