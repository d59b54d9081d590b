"""check_suitable: what can be refused before a weight is read: versions, precision, a tokenizer that is not there."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version

from models.backbones import Backbone
from models.origin import transformer_folder
from models.quantised import Quantisation
from storage.json_file import read_json

VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "tekken.json", "*.model")
BYTE_TOKENIZERS = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")
NO_FLOAT16 = ("gemma3_text",)
"""Model types whose states leave float16's range, by their card (arXiv:2509.20354)."""


def check_suitable(
    folder: Path,
    settings: Mapping[str, Any],
    row: Backbone | None,
    *,
    dtype: torch.dtype | None = None,
    quantization: Quantisation = "none",
) -> None:
    """Refuse a folder that cannot be loaded here, in one line.

    Args:
        folder: with the model.
        settings: its config.json.
        row: of BACKBONES, or None.
        dtype: the precision asked for; None for the stored one.
        quantization: int8 computes in float16 whatever the precision.

    Raises:
        ValueError: an older transformers than the row needs, float16 for a model that has no such activations, or
            no tokenizer.
    """
    if row is not None and row.transformers is not None:
        installed = version("transformers")
        if Version(installed) < Version(row.transformers):
            raise ValueError(
                f"backbone {row.name}: expected transformers {row.transformers} or later, which has its class, got "
                f"{installed}; run `pip install -U transformers`"
            )
    stored = settings.get("dtype") or settings.get("torch_dtype")
    if settings.get("model_type") in NO_FLOAT16:
        no_float16 = f"for {folder} ({settings['model_type']} has no float16 activations)"
        if (dtype or stored) in (torch.float16, "float16"):
            raise ValueError(f"--dtype: expected bfloat16 or float32 {no_float16}, got float16; change it")
        if quantization == "int8":
            raise ValueError(
                f"--lora.quantization: expected nf4, fp4 or none {no_float16}, got int8, which computes in float16; "
                "change it"
            )
    if settings and not any(_has_tokenizer(each) for each in {folder, transformer_folder(folder)}):
        raise ValueError(
            f"{folder}: expected a tokenizer (tokenizer.json, tokenizer.model, vocab.txt or vocab.json), found none; "
            "copy it from the repository of the base"
        )


def _has_tokenizer(folder: Path) -> bool:
    if any(file.is_file() for pattern in VOCABULARIES for file in folder.glob(pattern)):
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and str(read_json(config).get("tokenizer_class")) in BYTE_TOKENIZERS
