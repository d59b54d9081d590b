"""One mapping with every number of a suite: what scikit-learn says of the same texts, and reasons where there is none."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score, calinski_harabasz_score, confusion_matrix, silhouette_samples
from sklearn.metrics import silhouette_score as silhouette_of_sklearn

from evaluation.suite_report import Effort, chance_report, interval_report, jackknife_report, suite_report

FAMILIES = ["even", "odd", "primes"]


def cloud(n=36, d=5, apart=1.0):
    generator = torch.Generator().manual_seed(4)
    labels = [row % 3 for row in range(n)]
    return torch.randn(n, d, generator=generator) + apart * torch.eye(d)[labels], labels


def report_of(x, labels, **settings):
    nuisances = {
        "window": [float(row // 3) for row in range(len(labels))],
        "length": [float(len(labels))] * len(labels),
    }
    return suite_report(
        x, labels, families=FAMILIES, blocks=range(len(labels)), nuisances=nuisances, permutations=30, **settings
    )


def test_the_numbers_are_those_of_scikit_learn():
    x, labels = cloud()
    report = report_of(x, labels)
    points, found = x.double().numpy(), KMeans(3, n_init=10, random_state=0).fit_predict(x.numpy())
    assert report["silhouette_cosine"] == pytest.approx(silhouette_of_sklearn(points, labels, metric="cosine"))
    assert report["calinski_harabasz_true"] == pytest.approx(calinski_harabasz_score(points, labels))
    assert report["calinski_harabasz_kmeans"] == pytest.approx(calinski_harabasz_score(points, found))
    assert report["kmeans_ami"] == pytest.approx(adjusted_mutual_info_score(labels, found))
    each = silhouette_samples(points, labels)
    own = {name: each[np.array(labels) == label].mean() for label, name in enumerate(FAMILIES)}
    assert report["silhouette_by_family"] == pytest.approx(own)
    counts = np.array(report["confusion"]["matrix"])
    assert sorted(map(tuple, counts.T)) == sorted(map(tuple, confusion_matrix(labels, found).T))
    assert report["confusion"]["accuracy"] == pytest.approx(np.trace(counts) / len(labels))
    assert [entry["name"] for entry in report["nuisance"]] == ["family", "window", "length"]


def test_shuffles_within_windows_keep_what_the_windows_share():
    """Embeddings that follow the window and nothing else: free shuffles break the balance, shuffles within do not."""
    windows = torch.arange(12).repeat_interleave(3)
    x = 50 * torch.eye(12)[windows] + torch.randn(36, 12, generator=torch.Generator().manual_seed(0))
    report = report_of(x, [row % 3 for row in range(36)])
    assert report["null_within"]["sd"] < report["null"]["sd"] / 3
    assert abs(report["null_within"]["z"]) < 3


@pytest.mark.parametrize(
    ("x", "labels", "reason"),
    [
        (torch.ones(12, 3), [0, 1, 2] * 4, "all embeddings coincide"),
        (torch.randn(12, 3), [0] * 12, "needs 2 to 11 distinct labels for 12 texts, got 1"),
        (torch.randn(3, 3), [0, 1, 2], "needs 2 to 2 distinct labels for 3 texts, got 3"),
    ],
)
def test_what_is_undefined_has_the_keys_of_what_is_not_each_with_its_reason(x, labels, reason):
    report, usual = report_of(x, labels), report_of(*cloud())
    assert usual.keys() <= report.keys()
    missing = [key for key in usual if report[key] is None]
    assert {"silhouette_true", "kmeans_ari", "confusion", "nuisance", "silhouette_by_family"} <= set(missing)
    assert all(report[f"{key}_reason"] for key in missing)
    assert report["confusion_reason"] == reason
    assert report["null_within"]["p"] is None
    assert report["null_within"]["p_reason"] == reason


def test_effort_leaves_out_what_it_does_not_ask_for():
    x, _ = cloud()
    assert chance_report(x, 3, effort=Effort(draws=0, kmeans_seeds=0)) == {}
    report = chance_report(x, 3, effort=Effort(draws=2, kmeans_seeds=3))
    assert (report["null_kmeans"]["draws"], report["kmeans_spread"]["seeds"]) == (2, 3)


def test_an_interval_or_the_reason_why_there_is_none():
    x, labels = cloud()
    assert interval_report(x, labels, range(36))["interval"]["replicates"] == 6
    assert interval_report(x, labels, range(36), observed=0.5, per_label=4)["interval"]["per_label"] == 4
    none = interval_report(x[:6], labels[:6], range(6))
    assert none["interval"] is None
    assert "disjoint parts" in none["interval_reason"]
    assert jackknife_report(x, labels, range(36))["jackknife"]["deleted"] == 36
