"""The nuisance table: planted properties, independent formulas, and chance at zero."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_mutual_info_score

from evaluation import nuisance_table

NUMBERS = ("ami_clusters", "ami_family", "share_clusters", "share_axis1", "share_axis2")


def cloud(seed=0, n=48, d=6):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_name(table):
    return {row["name"]: row for row in table}


def adjusted(share, groups, n):
    """Chance is the mean share over all orders of the texts, (groups - 1) / (n - 1)."""
    return (share - (groups - 1) / (n - 1)) / (1 - (groups - 1) / (n - 1))


def eta_squared(values, groups):
    values, groups = np.asarray(values), np.asarray(groups)
    between = sum((groups == g).sum() * (values[groups == g].mean() - values.mean()) ** 2 for g in set(groups.tolist()))
    return between / ((values - values.mean()) ** 2).sum()


def test_every_number_by_an_independent_formula():
    points, random = cloud(), np.random.default_rng(0)
    labels, found = random.integers(0, 4, 48), random.integers(0, 5, 48)
    length = (points[:, 0] + 0.3 * cloud(1)[:, 0]).numpy()
    rows = by_name(nuisance_table(points, labels, {"length": length.tolist()}, found))
    axes = PCA(2).fit_transform(points.numpy())
    bins = np.searchsorted(np.quantile(length, [0.25, 0.5, 0.75]), length, side="right")
    expected = {
        "ami_clusters": adjusted_mutual_info_score(bins, found),
        "ami_family": adjusted_mutual_info_score(bins, labels),
        "share_clusters": adjusted(eta_squared(length, found), 5, 48),
        "share_axis1": adjusted(pearsonr(length, axes[:, 0])[0] ** 2, 2, 48),
        "share_axis2": adjusted(pearsonr(length, axes[:, 1])[0] ** 2, 2, 48),
    }
    assert {key: rows["length"][key] for key in NUMBERS} == pytest.approx(expected, abs=1e-10)
    table = np.array([[np.sum((labels == a) & (found == b)) for b in range(5)] for a in range(4)])
    family, cluster = table.sum(1) / 48, table.sum(0) / 48
    tau = (((table / 48) ** 2 / cluster).sum() - (family**2).sum()) / (1 - (family**2).sum())
    expected = {
        "ami_clusters": adjusted_mutual_info_score(labels, found),
        "ami_family": 1.0,
        "share_clusters": adjusted(tau, 5, 48),
        "share_axis1": adjusted(eta_squared(axes[:, 0], labels), 4, 48),
        "share_axis2": adjusted(eta_squared(axes[:, 1], labels), 4, 48),
    }
    assert {key: rows["family"][key] for key in NUMBERS} == pytest.approx(expected, abs=1e-10)


def test_a_planted_nuisance_is_found_where_it_was_planted():
    points, labels = cloud(), torch.arange(48) % 4
    magnitude = torch.arange(48) // 12
    points[:, 2] += 9.0 * magnitude
    points[:, 4] += 4.0 * (labels % 2)
    length = cloud(3)[:, 0].tolist()
    rows = by_name(nuisance_table(points, labels, {"magnitude": magnitude.tolist(), "length": length}, magnitude))
    assert rows["magnitude"]["ami_clusters"] == pytest.approx(1.0)
    assert rows["magnitude"]["share_clusters"] == pytest.approx(1.0)
    assert rows["magnitude"]["share_axis1"] > 0.95
    assert abs(rows["magnitude"]["share_axis2"]) < 0.1
    assert abs(rows["magnitude"]["ami_family"]) < 0.1
    assert rows["family"]["ami_clusters"] < 0.1
    assert rows["family"]["share_axis2"] > 0.5
    assert all(abs(rows["length"][key]) < 0.2 for key in NUMBERS)


def test_a_leak_is_a_property_that_tells_the_family():
    labels = torch.arange(48) % 4
    rows = by_name(nuisance_table(cloud(), labels, {"parity": (labels * 0.25).tolist()}, labels.flip(0)))
    assert rows["parity"]["ami_family"] == pytest.approx(1.0)


def test_chance_is_zero_for_every_share():
    """Averaged over shuffles the adjusted shares vanish, however many groups there are."""
    random, totals = np.random.default_rng(1), []
    labels, length = np.repeat(np.arange(6), 4), np.arange(24.0) ** 2
    for _ in range(150):
        order = random.permutation(24)
        table = nuisance_table(
            cloud(4, n=24), labels[order], {"length": length[order].tolist()}, np.repeat(range(6), 4)
        )
        totals.append([row[key] for row in table for key in NUMBERS if (row["name"], key) != ("family", "ami_family")])
    errors = np.std(totals, axis=0) / math.sqrt(150)
    shares = np.mean(totals, axis=0)
    expected = np.zeros(9)
    expected[5] = shares[5]  # length and family are shuffled together
    assert (np.abs(shares - expected) < 4 * errors + 1e-12).all()


def test_moving_turning_and_rescaling_the_embeddings_changes_nothing():
    points, labels = cloud(), torch.arange(48) % 4
    turn = torch.linalg.qr(cloud(7, n=6)).Q
    plain, moved = (nuisance_table(x, labels, {"length": range(48)}, labels) for x in (points, 5 * points @ turn - 3))
    for before, after in zip(plain, moved, strict=True):
        assert {key: after[key] for key in NUMBERS} == pytest.approx({key: before[key] for key in NUMBERS}, abs=1e-9)


def test_a_constant_property_is_none_with_its_reason():
    row = nuisance_table(cloud(), torch.arange(48) % 4, {"terms": [50.0] * 48}, torch.arange(48) % 3)[1]
    for key in NUMBERS:
        assert row[key] is None
        assert row[f"{key}_reason"] == "the same in all texts"


def test_trivial_partitions_do_not_agree_perfectly():
    one = nuisance_table(cloud(), ["a"] * 48, {"length": range(48)}, [0] * 48)
    assert all(row["ami_clusters"] is None and row["share_clusters"] is None for row in one)
    assert one[1]["ami_family"] is None
    assert "one label" in one[1]["ami_family_reason"]
    alone = nuisance_table(cloud(), range(48), {"length": range(48)}, range(48))
    assert all(row["ami_clusters"] is None and row["share_clusters"] is None for row in alone)


def test_axes_that_are_not_spanned_have_a_reason():
    labels = torch.arange(48) % 4
    collapsed = nuisance_table(torch.ones(48, 3), labels, {"length": range(48)}, labels)[1]
    assert collapsed["share_axis1"] is None
    assert collapsed["share_axis1_reason"] == "the embeddings have no axis 1"
    line = nuisance_table(cloud()[:, :1], labels, {"length": range(48)}, labels)[1]
    assert isinstance(line["share_axis1"], float)
    assert line["share_axis2_reason"] == "the embeddings have no axis 2"
    two = nuisance_table(cloud(n=2), [0, 1], {"length": [1, 2]}, [0, 0])[1]
    assert two["share_axis1_reason"] == "too few texts: 2"


def test_bad_input_is_refused_by_name():
    labels = torch.arange(48) % 4
    with pytest.raises(ValueError, match=r"nuisances\['length'\]: expected 48 numbers, .* got 5"):
        nuisance_table(cloud(), labels, {"length": range(5)}, labels)
    with pytest.raises(
        ValueError, match=r"nuisances\['length'\]: expected finite numbers, got NaN or infinity for 1 of 48"
    ):
        nuisance_table(cloud(), labels, {"length": [math.nan, *range(47)]}, labels)
    with pytest.raises(ValueError, match="other than 'family'"):
        nuisance_table(cloud(), labels, {"family": range(48)}, labels)
    with pytest.raises(ValueError, match="found: expected 48"):
        nuisance_table(cloud(), labels, {}, labels[:3])
    with pytest.raises(ValueError, match="labels: expected 48"):
        nuisance_table(cloud(), labels[:3], {}, labels)
