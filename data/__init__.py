"""data: sequence families, suites, labelled text, batches."""

from importlib import import_module
from typing import Any

_HOME = {
    "length_suite": "lengths",
    "matched_suite": "matched",
    "paper_folds": "folds",
    "paper_suite": "suites",
    "separated": "suite",
    "Suite": "suite",
    "with_nuisance": "suite",
}
__all__ = [
    "Suite",
    "length_suite",
    "matched_suite",
    "paper_folds",
    "paper_suite",
    "separated",
    "with_nuisance",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562), so that ``--help`` stays fast."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
