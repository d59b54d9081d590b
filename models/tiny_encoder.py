"""The built-in encoder: a small bidirectional transformer that is trained from scratch."""

from __future__ import annotations

import torch
from sentence_transformers import SentenceTransformer
from transformers import ModernBertConfig, ModernBertModel

from models.tiny_llm import as_embedder, build_tiny_tokenizer


def build_tiny_encoder(
    *,
    hidden_size: int = 128,
    layers: int = 5,
    heads: int = 4,
    intermediate_size: int = 256,
    max_tokens: int = 1024,
    seed: int = 0,
) -> SentenceTransformer:
    """A randomly initialised bidirectional encoder (ModernBERT blocks, about 0.85 M parameters) as an embedder.

    Tokenizer, mean pooling and normalisation are those of the tiny LLM, so that the two differ in attention and in
    pretraining only. Every layer attends to the whole text. There is no pooler: every weight is reached by the
    loss. The weights are a pure function of the arguments; the global random state is left as it was.

    Raises:
        ValueError: when `heads` does not divide `hidden_size`.

    Example:
        >>> build_tiny_encoder(hidden_size=16, layers=1, heads=2, intermediate_size=16).encode(["1, 2"]).shape
        (1, 16)
    """
    if hidden_size % heads:
        raise ValueError(
            f"hidden_size: expected a multiple of heads = {heads}, got {hidden_size}; change one of the two"
        )
    tokenizer = build_tiny_tokenizer(max_tokens=max_tokens)
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=max_tokens,
        layer_types=["full_attention"] * layers,
        rope_parameters={
            kind: {"rope_type": "default", "rope_theta": 10_000.0} for kind in ("full_attention", "sliding_attention")
        },
        bos_token_id=tokenizer.bos_token_id,
        cls_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        sep_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ModernBertModel(config)
    return as_embedder(model, tokenizer)
