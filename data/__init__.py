"""data: sequence families, suites, labelled text, batches."""

from importlib import import_module
from typing import Any

_HOME = {
    "paper_suite": "suites",
    "Suite": "suites",
}
__all__ = [
    "Suite",
    "paper_suite",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562), so that ``--help`` stays fast."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
