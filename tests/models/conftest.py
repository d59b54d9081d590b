"""Tiny random models, laid out on disk the way the real ones are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from models.export import save_embedder
from models.tiny_llm import as_embedder, build_tiny_llm, build_tiny_tokenizer

TEXTS = ["1, 2, 3, 4", "5, 6, 7", "2, 4, 8, 16, 32", "3, 9, 27"]
LABELS = torch.tensor([0, 0, 1, 1])


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return list(TEXTS)


@pytest.fixture(scope="session")
def labels() -> torch.Tensor:
    return LABELS.clone()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer version of the built-in LLM, random weights."""
    embedder = build_tiny_llm(hidden_size=16, layers=2, heads=2, intermediate_size=24, max_tokens=64, seed=1)
    return save_embedder(embedder, tmp_path_factory.mktemp("models") / "tiny-llm")


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer BERT with its pooler, which no embedding reads."""
    tokenizer = build_tiny_tokenizer(max_tokens=64)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(2)
    return save_embedder(as_embedder(BertModel(config), tokenizer), tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="session")
def mistral_folder(make_mistral: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Mistral laid out like e5-mistral's repository: last-token pooling, add_eos_token not acted on."""
    return make_mistral(tmp_path_factory.mktemp("models") / "e5-mistral", max_tokens=64)
