"""The matched suite: what every family shares, that trivial features find nothing, and that there is something to find."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch

from data.matched import ORDERS, POOL, TEXTS, matched_suite
from evaluation.baselines import BASELINES, baseline_embeddings
from evaluation.clustering import silhouette_score
from evaluation.neighbours import neighbour_accuracy
from evaluation.nulls import permutation_null

SHA256 = "a3740c7adea8aaf6b387ab7a81453e5a68c3247a3f6abad6261b2a5b4ec88518"
SUITE = matched_suite()
TERMS = [[int(term) for term in text.split(", ")] for text in SUITE.texts]
CHANCE = (TEXTS - 1) / (len(TERMS) - 1)
"""Of a nearest neighbour; its standard deviation over 144 texts is 0.03."""


def differences(terms: Sequence[int]) -> list[int]:
    return [after - before for before, after in pairwise(terms)]


def histogram(values: Sequence[int], bins: Sequence[int]) -> list[float]:
    counts = Counter(values)
    return [float(counts[value]) for value in bins]


def test_the_texts_are_the_pinned_ones() -> None:
    assert hashlib.sha256("\n".join(SUITE.texts).encode()).hexdigest() == SHA256
    assert matched_suite() is SUITE


def test_all_families_have_24_texts_of_51_terms_and_304_characters_all_odd() -> None:
    assert Counter(SUITE.labels) == dict.fromkeys(range(6), 24)
    assert {len(terms) for terms in TERMS} == {51}
    assert {len(text) for text in SUITE.texts} == {304}
    assert all(1000 <= term <= 9999 and term % 2 == 1 for terms in TERMS for term in terms)
    assert len(set(SUITE.blocks)) == len(SUITE.texts)


def test_every_text_has_ten_gaps_five_times_each() -> None:
    for terms in TERMS:
        counts = Counter(differences(terms))
        assert len(counts) == 10
        assert set(counts.values()) == {5}
        assert counts.keys() <= set(POOL)
        assert sum(counts) % 10 != 0


def test_every_text_has_each_odd_last_digit_ten_times_after_the_start() -> None:
    assert all(Counter(term % 10 for term in terms[1:]) == dict.fromkeys((1, 3, 5, 7, 9), 10) for terms in TERMS)


def of_family(name: str) -> list[list[int]]:
    label = SUITE.families.index(name)
    return [differences(terms) for terms, own in zip(TERMS, SUITE.labels, strict=True) if own == label]


def test_each_family_keeps_its_order() -> None:
    assert SUITE.families == tuple(ORDERS)
    for gaps in of_family("rising"):
        assert gaps == gaps[:10] * 5
        assert sum(after < before for before, after in pairwise(gaps[:11])) == 1, "one fall a period"
    for gaps in of_family("falling"):
        assert gaps == gaps[:10] * 5
        assert sum(after > before for before, after in pairwise(gaps[:11])) == 1
    assert all(gaps == gaps[:10] * 5 for gaps in of_family("periodic"))
    assert all(gaps[at : at + 5] == [gaps[at]] * 5 for gaps in of_family("runs") for at in range(0, 50, 5))
    for gaps in of_family("alternating"):
        low, high = sorted((gaps[::2], gaps[1::2]), key=sum)
        assert max(low) < min(high)
    assert not any(gaps == gaps[:10] * 5 for gaps in of_family("shuffled"))


TRIVIAL = {name: baseline_embeddings(name, SUITE.texts) for name in BASELINES} | {
    "every first difference": np.array([histogram(differences(terms), POOL) for terms in TERMS]),
    "digits": np.array([histogram([int(c) for c in text if c.isdigit()], range(10)) for text in SUITE.texts]),
    "tens": np.array([histogram([term // 10 % 10 for term in terms], range(10)) for terms in TERMS]),
    "magnitude": np.array([[float(np.mean(terms))] for terms in TERMS]),
    "first and last term": np.array([[float(terms[0]), float(terms[-1])] for terms in TERMS]),
}


@pytest.mark.parametrize("name", TRIVIAL)
def test_a_trivial_feature_is_near_chance(name: str) -> None:
    features = torch.tensor(TRIVIAL[name], dtype=torch.float64)
    if bool((features == features[0]).all()):
        assert name in ("parity", "string-length"), "the same for every text: nothing to score"
        return
    null = permutation_null(features, SUITE.labels, permutations=200)
    score = silhouette_score(features, SUITE.labels)
    assert abs(null.z) < 3
    assert abs(score - null.mean) < (0.03 if features.shape[1] > 2 else 0.05)
    assert abs(neighbour_accuracy(features, SUITE.labels, blocks=SUITE.blocks) - CHANCE) < 0.09


def order_of(terms: Sequence[int]) -> list[float]:
    """How the gaps follow each other: how often they rise and stay, and how a gap goes with later ones."""
    gaps = np.array(differences(terms), dtype=float)
    centred = gaps - gaps.mean()
    steps = np.diff(gaps)
    lags = [float((centred[lag:] * centred[:-lag]).mean() / centred.var()) for lag in (1, 2, 10)]
    return [float(np.sign(steps).mean()), float((steps == 0).mean()), *lags]


@pytest.mark.parametrize(
    ("features", "least", "accuracy"),
    [
        ([order_of(terms) for terms in TERMS], 0.4, 0.85),
        ([np.sign(np.diff(differences(terms))) for terms in TERMS], 0.05, 0.6),
    ],
    ids=["summary of the order", "signs of second differences"],
)
def test_the_order_itself_tells_the_families_apart(
    features: Sequence[Sequence[float]], least: float, accuracy: float
) -> None:
    points = torch.tensor(np.array(features), dtype=torch.float64)
    assert silhouette_score(points, SUITE.labels) > least
    assert permutation_null(points, SUITE.labels, permutations=200).z > 10
    assert neighbour_accuracy(points, SUITE.labels, blocks=SUITE.blocks) > accuracy


def test_the_papers_own_suite_does_not_pass_this_test() -> None:
    """Guards the test above against features that would find nothing anywhere."""
    from data.suites import paper_suite

    paper = paper_suite()
    for name in ("last-digit", "first-differences", "parity"):
        features = torch.tensor(baseline_embeddings(name, paper.texts))
        assert permutation_null(features, paper.labels, permutations=200).z > 3, name
