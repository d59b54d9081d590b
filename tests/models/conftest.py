"""Tiny random models, laid out on disk the way the real ones are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import BertConfig, BertModel, LlamaTokenizer, MistralConfig, MistralModel

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
def mistral_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Mistral laid out like e5-mistral's repository: last-token pooling, add_eos_token not acted on."""
    folder = tmp_path_factory.mktemp("models") / "e5-mistral"
    write_mistral(folder)
    return folder


def write_mistral(folder: Path) -> None:
    characters = ["▁", ",", "\n", *":.()-0123456789abcdefghijklmnopqrstuvwxyzIQ"]
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *characters])}
    tokenizer = LlamaTokenizer(
        vocab=vocabulary,
        merges=[],
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        add_bos_token=True,
    )
    config = MistralConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        sliding_window=48,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    torch.manual_seed(3)
    folder.mkdir()
    MistralModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    wanted = {"add_bos_token": True, "add_eos_token": True, "padding_side": "right"}
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **wanted}))
    transformer = Transformer(str(folder))
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), "lasttoken"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder), create_model_card=False)
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **wanted}))
