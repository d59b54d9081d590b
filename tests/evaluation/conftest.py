"""Rows of a report, as the run and the evaluation make them."""

import copy

import pytest

_ROW = {
    "name": "base",
    "family": "base",
    "source": "measured",
    "prompt": None,
    "silhouette_true": 0.0461,
    "davies_bouldin_true": 2.09,
    "silhouette_kmeans": 0.211,
    "davies_bouldin_kmeans": 1.31,
    "null": {"mean": -0.112, "sd": 0.021, "z": 7.3, "p": 0.001},
    "suites": {"large": {"silhouette_true": 0.107}, "held-out": {"silhouette_true": 0.08}},
    "retention": {"cka": 1.0, "rsa": 1.0, "knn": 1.0, "procrustes": 1.0},
}


@pytest.fixture
def make_row():
    """A function that makes one valid row, with other values where asked."""

    def make(name="base", **changes):
        return copy.deepcopy(_ROW) | {"name": name} | changes

    return make


@pytest.fixture
def rows(make_row):
    """A base, an adapter whose retention is lower, a merge, and a published row that lacks most numbers."""
    published = make_row("e5-mistral", family="published", source="published", suites={})
    published |= {"null": None, "null_reason": "the paper prints none"}
    published |= {"retention": None, "retention_reason": "another base"}
    return [
        make_row(),
        make_row(
            "stages/2-six",
            family="lora",
            suites={"large": {"silhouette_true": 0.45}, "held-out": {"silhouette_true": 0.155}},
            retention={
                "cka": 0.663,
                "rsa": 0.598,
                "knn": None,
                "knn_reason": "needs at least 12 texts",
                "procrustes": 0.8,
            },
        ),
        make_row("soup", family="soup", note="mean of the stages"),
        published,
    ]
