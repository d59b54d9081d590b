"""NomicBert with a mixture of experts in the place of the model inside sentence-transformers' Transformer module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sentence_transformers.sentence_transformer.modules import Transformer

from models.nomic_config import NomicMoeConfig, read_nomic_config
from models.nomic_moe import NomicMoeModel, load_nomic_moe


class NomicTransformer(Transformer):
    """A Transformer module that takes :class:`NomicMoeModel` where transformers' AutoModel would take another class.

    It differs in how it is loaded and in nothing else; see `as_transformer`.
    """

    def _load_config(
        self, model_name_or_path: str, backend: str, config_kwargs: dict[str, Any]
    ) -> tuple[NomicMoeConfig, bool]:
        return read_nomic_config(Path(model_name_or_path) / "config.json"), False

    def _load_model(self, model_name_or_path: str, *_: object, **model_kwargs: Any) -> NomicMoeModel:
        dtype = model_kwargs.get("dtype")
        return load_nomic_moe(model_name_or_path, dtype=None if dtype == "auto" else dtype)


def as_transformer(module: NomicTransformer) -> None:
    """Make it a plain Transformer module, so that a saved folder names sentence-transformers' class in modules.json."""
    module.__class__ = Transformer
