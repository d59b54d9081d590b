"""merging: checkpoints in, one checkpoint out."""

from importlib import import_module
from typing import Any

_HOME = {
    "merge_checkpoints": "engine",
    "merge_tensors": "tensors",
    "merge_state_dicts": "tensors",
    "merge_adapters": "lora_space",
    "Measured": "measured",
    "METHODS": "methods",
}
__all__ = [
    "METHODS",
    "Measured",
    "merge_adapters",
    "merge_checkpoints",
    "merge_state_dicts",
    "merge_tensors",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562), so that ``--help`` stays fast."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
