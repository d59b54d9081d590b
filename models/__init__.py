"""models: embedders, and what trains them."""

from importlib import import_module
from typing import Any

_HOME = {
    "BACKBONES": "backbones",
    "Backbone": "backbones",
    "UnreachableModel": "locate",
    "add_lora": "lora",
    "base_folder": "locate",
    "encode": "embedder",
    "find_backbone": "backbones",
    "load_embedder": "embedder",
    "save_adapter": "export",
    "save_embedder": "export",
    "supervised_contrastive_loss": "losses",
}
__all__ = [
    "BACKBONES",
    "Backbone",
    "UnreachableModel",
    "add_lora",
    "base_folder",
    "encode",
    "find_backbone",
    "load_embedder",
    "save_adapter",
    "save_embedder",
    "supervised_contrastive_loss",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562), so that ``--help`` stays fast."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
