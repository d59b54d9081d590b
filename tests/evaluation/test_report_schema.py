"""What a report may hold: every departure from the schema is refused, and its key is named."""

import math

import pytest

from evaluation import clustering_report, retention_report, validate_report
from evaluation.report_schema import PAPER_COLUMNS
from tests.evaluation.report_rows import many_rows


def test_rows_of_every_kind_are_accepted(rows):
    validate_report({"rows": rows, "context": {"seed": 0}, "claims": []})
    validate_report({"rows": many_rows(), "context": {}})


def test_what_the_metrics_return_fits(make_row):
    import torch

    one_label = clustering_report(torch.eye(4), ["a"] * 4)
    kept = retention_report(torch.eye(4), torch.ones(4, 2))
    row = make_row("undefined", suites={"large": one_label}, retention=kept) | one_label
    validate_report({"rows": [row], "context": {}})


@pytest.mark.parametrize("key", ["name", "family", "source", "prompt", *PAPER_COLUMNS, "null", "suites", "retention"])
def test_a_missing_key_is_named(rows, key):
    del rows[1][key]
    with pytest.raises(ValueError, match=rf"rows\[1\]\.{key}: expected .* got nothing"):
        validate_report({"rows": rows, "context": {}})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("family",), "best", r"rows\[0\]\.family: expected one of encoder, .* got 'best'"),
        (("source",), "guessed", r"rows\[0\]\.source"),
        (("prompt",), 3, r"rows\[0\]\.prompt: expected a text or None"),
        (("note",), 3, r"rows\[0\]\.note"),
        (("name",), "  ", r"rows\[0\]\.name: expected a text that is not empty"),
        (("silhouette_true",), "0.1", r"rows\[0\]\.silhouette_true: expected a number"),
        (("silhouette_true",), True, r"rows\[0\]\.silhouette_true: expected a number"),
        (("silhouette_true",), math.nan, r"rows\[0\]\.silhouette_true: expected a finite number, got nan"),
        (("silhouette_true",), None, r"rows\[0\]\.silhouette_true_reason: expected a text that says why"),
        (("null", "z"), None, r"rows\[0\]\.null\.z_reason"),
        (("null", "p"), math.inf, r"rows\[0\]\.null\.p: expected a finite number, got inf"),
        (("retention",), None, r"rows\[0\]\.retention_reason"),
        (("retention", "cka"), "high", r"rows\[0\]\.retention\.cka"),
        (("suites",), [], r"rows\[0\]\.suites: expected a mapping"),
        (("suites", "large"), {}, r"rows\[0\]\.suites\.large\.silhouette_true: expected a number"),
        (("suites", "large"), {"silhouette_true": 0.1, "ari": None}, r"rows\[0\]\.suites\.large\.ari_reason"),
        (("suites", "selection"), {"silhouette_true": 0.9}, r"rows\[0\]\.suites\.selection: .* leave it out"),
        (("extra",), {1, 2}, r"rows\[0\]\.extra"),
    ],
)
def test_a_wrong_value_is_named(rows, path, value, message):
    target = rows[0]
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        validate_report({"rows": rows, "context": {}})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("nn1_accuracy",), "most", r"nn1_accuracy: expected a number"),
        (("kmeans_ami",), None, r"kmeans_ami_reason: expected a text that says why"),
        (("interval",), None, r"interval_reason: expected a text that says why"),
        (("interval", "low"), None, r"interval\.low_reason"),
        (("interval",), {"low": 0.1}, r"interval\.high: expected a number"),
        (("jackknife",), 0.1, r"jackknife: expected a mapping"),
        (("null_kmeans", "silhouette", "high"), None, r"null_kmeans\.silhouette\.high_reason"),
        (("null_kmeans", "davies_bouldin"), None, r"null_kmeans\.davies_bouldin_reason"),
        (("kmeans_spread", "best"), {}, r"kmeans_spread\.best\.silhouette: expected a number"),
        (("geometry", "anisotropy"), None, r"geometry\.anisotropy_reason"),
        (("benchmarks", "STSBenchmark"), [1], r"benchmarks\.STSBenchmark: expected a number"),
        (("silhouette_by_family", "odd"), [], r"silhouette_by_family\.odd: expected a number or None"),
        (("confusion", "matrix"), [[1, 2]], r"confusion\.matrix: expected 6 rows of equal length"),
        (("confusion", "matrix", 2), [1], r"confusion\.matrix: expected 6 rows of equal length"),
        (("confusion", "matrix", 2, 1), 0.5, r"confusion\.matrix: expected a count, got 0\.5"),
        (("confusion", "matrix", 2, 1), -1, r"confusion\.matrix: expected a count, got -1"),
        (("confusion", "families"), "six", r"confusion\.families: expected a list"),
        (("nuisance",), {}, r"nuisance: expected a list"),
        (("nuisance", 1, "name"), "", r"nuisance\[1\]\.name: expected a text"),
        (("nuisance", 1, "share_axis1"), None, r"nuisance\[1\]\.share_axis1_reason"),
        (("lengths", 0, "terms"), "ten", r"lengths\[0\]\.terms: expected a count"),
        (("lengths", 5, "silhouette_true_reason"), " ", r"lengths\[5\]\.silhouette_true_reason"),
        (("lengths", 0, "null"), {}, r"lengths\[0\]\.null\.mean"),
        (("suites", "large", "interval"), {"low": 0.0}, r"suites\.large\.interval\.high"),
        (("suites", "large", "nn1_accuracy"), math.nan, r"suites\.large\.nn1_accuracy: expected a finite number"),
        (("error",), "", r"error: expected a text that is not empty"),
        (("note",), "\ud800", r"note: expected text that can be written as UTF-8"),
    ],
)
def test_a_wrong_value_of_the_optional_keys_is_named(path, value, message):
    row = target = many_rows()[0]
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(ValueError, match=r"rows\[0\]\." + message):
        validate_report({"rows": [row], "context": {}})


def test_names_are_unique(rows, make_row):
    with pytest.raises(ValueError, match=r"rows\[4\]\.name: .* second 'base'"):
        validate_report({"rows": [*rows, make_row()], "context": {}})


@pytest.mark.parametrize("report", [[], {"rows": "base", "context": {}}, {"rows": []}, {"context": {}}])
def test_the_frame_is_checked(report):
    with pytest.raises(ValueError, match="report"):
        validate_report(report)


def test_context_is_finite_json():
    with pytest.raises(ValueError, match=r"report\.context\.loss: expected a finite number"):
        validate_report({"rows": [], "context": {"loss": math.nan}})
