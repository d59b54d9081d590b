"""evaluation: numbers about embeddings: pure functions on (n, d) tensors, then a report."""

from importlib import import_module
from typing import Any

_HOME = {
    "silhouette_score": "clustering",
    "davies_bouldin_score": "clustering",
    "kmeans_labels": "clustering",
    "clustering_report": "clustering",
    "permutation_null": "nulls",
    "retention_report": "retention",
    "projection_figure": "projection",
    "validate_report": "report_schema",
    "write_report": "report",
}
__all__ = [
    "clustering_report",
    "davies_bouldin_score",
    "kmeans_labels",
    "permutation_null",
    "projection_figure",
    "retention_report",
    "silhouette_score",
    "validate_report",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562), so that ``--help`` stays fast."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
