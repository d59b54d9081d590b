"""Tensors that one save of a model holds and another leaves out, because the model makes them itself on loading.

Two kinds are known: an output layer that is the embedding matrix over again (tied weights), and the buffer
``position_ids``, which counts 0, 1, 2, ...  Either is recognised by its values, never by its name alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from merging.sources import Checkpoint, TensorSource, as_matrix
from storage.json_file import read_json

OUTPUT_LAYER = re.compile(r"(?:.*[./])?(?:lm_head|lm_head\.decoder|embed_out|cls\.predictions\.decoder)\.weight")
EMBEDDING = re.compile(
    r"(?:.*[./])?(?:embed_tokens|word_embeddings|tok_embeddings|token_embedding|embed_in|wte|shared|embeddings)\.weight"
)
POSITION_IDS = re.compile(r"(?:.*[./])?position_ids")

ROWS_AT_ONCE = 4096
"""Rows that are compared at a time."""


def is_vocabulary(name: str) -> bool:
    """Say whether the tensor has a row for each token: an embedding matrix or an output layer.

    >>> is_vocabulary("model.embed_tokens.weight"), is_vocabulary("layers.0.mlp.up_proj.weight")
    (True, False)
    """
    return bool(EMBEDDING.fullmatch(name) or OUTPUT_LAYER.fullmatch(name))


def is_output_layer(name: str) -> bool:
    """Say whether the tensor is named like an output layer, which a model may tie to its embeddings."""
    return bool(OUTPUT_LAYER.fullmatch(name))


def why_implied(name: str, tensors: Mapping[str, TensorSource]) -> str | None:
    """Say why a model does not need ``name`` on disk, or return None if it does.  Reads the tensors in question.

    ``tensors`` are those of the model that stores it.
    """
    tensor = tensors[name]
    if POSITION_IDS.fullmatch(name) and not tensor.dtype.is_floating_point and _counts_up(tensor):
        return "it counts 0, 1, 2, ... and the model makes it itself"
    if not is_output_layer(name):
        return None
    for other, embedding in tensors.items():
        if EMBEDDING.fullmatch(other) and _same_values(tensor, embedding):
            return f"it equals {other} (tied weights)"
    return None


def says_tied(checkpoint: Checkpoint) -> bool | None:
    """Return ``tie_word_embeddings`` of the transformer's config.json; None where it does not say."""
    file = checkpoint.folder / checkpoint.transformer / "config.json"
    config = read_json(file) if file.is_file() else None
    said = config.get("tie_word_embeddings") if isinstance(config, dict) else None
    return said if isinstance(said, bool) else None


def _counts_up(tensor: TensorSource) -> bool:
    if len(tensor.shape) not in (1, 2) or (len(tensor.shape) == 2 and tensor.shape[0] != 1):
        return False
    rows, _ = as_matrix(tensor.shape)
    values = tensor.rows(0, rows).reshape(-1).to("cpu", torch.int64)
    return torch.equal(values, torch.arange(len(values)))


def _same_values(one: TensorSource, other: TensorSource) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    rows, _ = as_matrix(one.shape)
    bounds = ((start, min(start + ROWS_AT_ONCE, rows)) for start in range(0, rows, ROWS_AT_ONCE))
    return all(torch.equal(one.rows(start, stop), other.rows(start, stop)) for start, stop in bounds)
