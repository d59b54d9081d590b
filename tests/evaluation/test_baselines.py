"""The baselines: the figures measured for the paper's suite, their definitions as loops, and what they refuse."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import davies_bouldin_score as sklearn_davies_bouldin
from sklearn.metrics import silhouette_score as sklearn_silhouette

from data.suites import paper_suite
from evaluation import BASELINES, baseline_embeddings, davies_bouldin_score
from evaluation.baselines import integers

NUMERIC = [name for name, baseline in BASELINES.items() if baseline.numeric]


@pytest.mark.parametrize(
    ("name", "silhouette", "davies_bouldin"),
    [
        ("last-digit", 0.645, 1.00),
        ("first-differences", 0.546, 0.21),
        ("parity", 0.324, 0.61),
        ("string-length", -0.335, 32.9),
        ("char-tfidf", -0.136, 3.63),
    ],
)
def test_the_figures_of_the_papers_suite(name, silhouette, davies_bouldin):
    suite = paper_suite()
    features = baseline_embeddings(name, suite.texts)
    assert sklearn_silhouette(features, suite.labels) == pytest.approx(silhouette, abs=6e-4)
    assert sklearn_davies_bouldin(features, suite.labels) == pytest.approx(davies_bouldin, rel=0.006)


@pytest.mark.parametrize("name", ["first-differences", "parity"])
def test_families_that_a_baseline_cannot_tell_apart_have_no_davies_bouldin(name):
    """Even and odd numbers have the same differences: scikit-learn leaves their pair out without a word."""
    suite = paper_suite()
    assert math.isnan(davies_bouldin_score(baseline_embeddings(name, suite.texts), suite.labels))


def test_random_vectors_score_as_measured():
    suite = paper_suite()
    scores = [
        sklearn_silhouette(baseline_embeddings("random", suite.texts, seed=seed), suite.labels) for seed in range(9)
    ]
    assert np.mean(scores) == pytest.approx(-0.02, abs=0.006)


def test_a_random_vector_belongs_to_a_position_and_a_seed():
    first = baseline_embeddings("random", ["a", "b", "c"])
    np.testing.assert_array_equal(first[:2], baseline_embeddings("random", ["x", "y"]))
    assert not np.array_equal(first, baseline_embeddings("random", ["a", "b", "c"], seed=1))


@given(
    rows=st.lists(st.lists(st.integers(0, 10**30), min_size=2, max_size=8), min_size=1, max_size=4),
    separator=st.sampled_from([", ", ",", " ", "\n", "\t", ";", " | ", "<b>", "-", " and "]),
)
def test_definitions_as_loops_under_any_separator(rows, separator):
    texts = [separator.join(map(str, row)) for row in rows]
    assert [integers(text) for text in texts] == rows
    digits, steps, odd = (baseline_embeddings(name, texts) for name in ("last-digit", "first-differences", "parity"))
    for at, row in enumerate(rows):
        ends = Counter(int(str(number)[-1]) for number in row)
        norm = math.sqrt(sum(count**2 for count in ends.values()))
        assert digits[at].tolist() == pytest.approx([ends[digit] / norm for digit in range(10)])
        gaps = Counter(min(max(row[i + 1] - row[i], 0), 10) for i in range(len(row) - 1))
        norm = math.sqrt(sum(count**2 for count in gaps.values()))
        assert steps[at].tolist() == pytest.approx([gaps[gap] / norm for gap in range(11)])
        assert odd[at].tolist() == [sum(number % 2 == 1 for number in row) / len(row)]


def test_signs_belong_to_numbers_and_hyphens_between_digits_do_not():
    assert integers("-1, 2, -3") == [-1, 2, -3]
    assert integers("1-2 (3)-4") == [1, 2, 3, -4]
    assert baseline_embeddings("last-digit", ["-13, 3"])[0].argmax() == 3
    assert baseline_embeddings("parity", ["-1, -2"]).item() == 0.5


@pytest.mark.parametrize("name", NUMERIC)
def test_texts_without_numbers_are_refused_by_name(name):
    with pytest.raises(ValueError, match=rf"'{name}' expected at least . integers in every text, got 0 in row 1 \('no"):
        baseline_embeddings(name, ["1, 2", "no\tnumbers <b>here</b>"])


def test_one_number_has_no_difference():
    assert baseline_embeddings("parity", ["7"]).item() == 1.0
    with pytest.raises(
        ValueError, match="'first-differences' expected at least 2 integers in every text, got 1 in row 0"
    ):
        baseline_embeddings("first-differences", ["7"])


def test_text_that_is_not_numbers_has_the_other_baselines():
    texts = ["a\tb", "<b>&amp;</b>", "line\nbreak"]
    for name, baseline in BASELINES.items():
        if not baseline.numeric:
            features = baseline_embeddings(name, texts)
            assert features.shape[0] == 3
            assert features.dtype == np.float64
            assert np.isfinite(features).all()
    assert baseline_embeddings("string-length", texts).ravel().tolist() == [3, 12, 10]


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"expected a baseline \(last-digit, .*random\), got 'digits'"):
        baseline_embeddings("digits", ["1"])
    with pytest.raises(ValueError, match="expected at least one for the baseline 'random', got none"):
        baseline_embeddings("random", [])
    with pytest.raises(ValueError, match="got blank texts only"):
        baseline_embeddings("char-tfidf", ["", " \n"])
