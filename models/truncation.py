"""Matryoshka embeddings: the first components only, of unit length again where the model's embeddings have it.

Kusupati et al. (2022), Matryoshka Representation Learning, arXiv:2205.13147.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from torch import nn


def truncate(embedder: SentenceTransformer, dimension: int, *, source: str) -> None:
    """Cut every embedding to its first `dimension` components, in place.

    sentence-transformers cuts after the last module, which leaves the embeddings of a model that ends with
    Normalize shorter than unit length; here they are cut before that module.

    Raises:
        ValueError: a dimension outside 1..length of an embedding.

    Example:
        >>> from models import load_embedder
        >>> embedder = load_embedder("tiny-encoder")
        >>> truncate(embedder, 32, source="tiny-encoder")
        >>> embedder.encode(["1, 2"]).shape
        (1, 32)
    """
    length = embedder.get_embedding_dimension()
    assert length is not None, source
    if not 1 <= dimension <= length:
        raise ValueError(
            f"--truncate-dim: expected 1 to {length} components (an embedding of {source}), got {dimension}; change it"
        )
    modules = list(embedder)
    for place, module in enumerate(modules):
        # One with a Dense module behind it is not the end: what that module reads has to be whole.
        if isinstance(module, Normalize) and not any(isinstance(later, Dense) for later in modules[place:]):
            module.register_forward_pre_hook(partial(_cut, dimension=dimension))
    embedder.truncate_dim = dimension


def _cut(_module: nn.Module, given: tuple[dict[str, Any], ...], *, dimension: int) -> tuple[dict[str, Any], ...]:
    features, *rest = given
    return ({**features, "sentence_embedding": features["sentence_embedding"][..., :dimension]}, *rest)
