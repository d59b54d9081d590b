"""Agreement of clusters with labels: scikit-learn's numbers, the definition of the Rand index, chance, bad input."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from evaluation.agreement import agreement_undefined, cluster_agreement


def slow_adjusted_rand(labels, found):
    """Hubert and Arabie's index from its definition: pairs of texts that are together in both."""
    pairs = list(combinations(range(len(labels)), 2))
    together = [labels[i] == labels[j] for i, j in pairs]
    found_together = [found[i] == found[j] for i, j in pairs]
    both = sum(a and b for a, b in zip(together, found_together, strict=True))
    expected = sum(together) * sum(found_together) / len(pairs)
    most = (sum(together) + sum(found_together)) / 2
    return (both - expected) / (most - expected)


@given(seed=st.integers(0, 2**16), n=st.integers(5, 20), k=st.integers(2, 4), m=st.integers(1, 5))
def test_scores_are_scikit_learns_and_the_definition(seed, n, k, m):
    random = np.random.default_rng(seed)
    labels, found = np.arange(n) % k, random.integers(0, m, n)
    scores = cluster_agreement([f"family {label}" for label in labels], torch.from_numpy(found))
    assert scores["ari"] == pytest.approx(metrics.adjusted_rand_score(labels, found), abs=1e-12)
    assert scores["ari"] == pytest.approx(slow_adjusted_rand(labels, found), abs=1e-12)
    assert scores["nmi"] == pytest.approx(metrics.normalized_mutual_info_score(labels, found), abs=1e-12)
    assert scores["ami"] == pytest.approx(metrics.adjusted_mutual_info_score(labels, found), abs=1e-12)
    renamed = random.permutation(10)[found]
    assert cluster_agreement(labels, renamed) == pytest.approx(scores, abs=1e-12)


def test_only_the_adjusted_scores_are_zero_by_chance():
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 4)
    scores = [cluster_agreement(labels, random.integers(0, 6, 24)) for _ in range(100)]
    mean = {key: np.mean([score[key] for score in scores]) for key in scores[0]}
    assert mean["ari"] == pytest.approx(0, abs=0.02)
    assert mean["ami"] == pytest.approx(0, abs=0.03)
    assert mean["nmi"] == pytest.approx(0.356, abs=0.03)


@pytest.mark.parametrize("labels", [["a"] * 5, list("abcde")], ids=["one label", "a label for each text"])
def test_trivial_labels_are_undefined_where_scikit_learn_says_one(labels):
    assert metrics.adjusted_rand_score(labels, labels) == 1.0
    assert all(math.isnan(value) for value in cluster_agreement(labels, labels).values())
    assert "needs 2 to 4 distinct labels for 5 texts" in agreement_undefined(labels)
    assert agreement_undefined(["a", "a", "b"]) is None
    assert "needs at least 3 texts with 2 distinct labels, got 2 texts" in agreement_undefined(["a", "b"])


def test_one_single_cluster_tells_nothing():
    assert cluster_agreement(["a", "a", "b", "b"], [3, 3, 3, 3]) == {"ari": 0.0, "nmi": 0.0, "ami": 0.0}


def test_columns_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="found: expected 3, one for each text, got 2"):
        cluster_agreement(["a", "a", "b"], [0, 1])
    with pytest.raises(ValueError, match=r"labels: .* got none in 1 rows \(first: row 1\)"):
        cluster_agreement(["a", None, "b"], [0, 1, 1])
    with pytest.raises(ValueError, match=r"found: .* got none in 1 rows \(first: row 2\)"):
        cluster_agreement(["a", "a", "b"], [0, 1, None])
