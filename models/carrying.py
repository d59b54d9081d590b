"""adapter_obstacle: why a plain PEFT adapter folder cannot carry an adapter of a base, if it cannot.

Plain PEFT builds the base again with transformers' AutoModel from what its config.json says. What the loader does
beyond that file (`models.embedder.load_embedder`) is lost there, so such a model is exported merged.
"""

from __future__ import annotations

from pathlib import Path

from models.attention import CAUSAL_BY_DEFAULT
from models.native_config import is_foreign
from models.nomic_type import is_nomic_moe
from models.origin import row_of, transformer_folder
from storage.json_file import read_json


def adapter_obstacle(folder: Path, *, bidirectional: bool = False) -> str | None:
    """The reason why plain PEFT over plain transformers gives other embeddings than this package, or None.

    Args:
        folder: of the base's weights, as ``base_folder`` gives it.
        bidirectional: whether the base is used without its causal mask though nothing in its folder says so.

    Returns:
        One clause without a full stop, for a message or a table.

    Example:
        >>> from models.locate import base_folder
        >>> adapter_obstacle(base_folder("tiny-llm"))
        >>> adapter_obstacle(base_folder("tiny-llm"), bidirectional=True)
        'the causal mask is removed in memory, and config.json of the base does not say is_causal false'
    """
    file = transformer_folder(folder) / "config.json"
    settings = read_json(file) if file.is_file() else {}
    kind = settings.get("model_type", "")
    if is_nomic_moe(settings):
        return "transformers has no class for a NomicBert with a mixture of experts"
    if is_foreign(settings):
        return f"transformers has no model type {kind!r}: config.json of the base is translated when it is loaded"
    row = row_of(folder)
    removed = bidirectional or (row is not None and row.attention == "bidirectional")
    if kind in CAUSAL_BY_DEFAULT and removed and settings.get("is_causal", True):
        return "the causal mask is removed in memory, and config.json of the base does not say is_causal false"
    return None
