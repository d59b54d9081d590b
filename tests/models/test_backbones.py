from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

import models
from models.backbones import BACKBONES, builtin_names, find_backbone, lookup_backbone

# Table 1 of the paper: its name, billions of parameters, hub id; and our short name.
TABLE_1 = [
    ("embeddinggemma-300m", 0.3, "google/embeddinggemma-300m", "embeddinggemma"),
    ("gte-multilingual-base", 0.3, "Alibaba-NLP/gte-multilingual-base", "gte-multilingual"),
    ("gte-large-en-v1.5", 0.4, "Alibaba-NLP/gte-large-en-v1.5", "gte-large"),
    ("nomic-embed-text-v2-moe", 0.5, "nomic-ai/nomic-embed-text-v2-moe", "nomic-moe"),
    ("multilingual-e5-large", 0.6, "intfloat/multilingual-e5-large", "me5-large"),
    ("qwen3-embedding-0.6b", 0.6, "Qwen/Qwen3-Embedding-0.6B", "qwen3-0.6b"),
    ("gte-qwen2-1.5b-instruct", 1.5, "Alibaba-NLP/gte-Qwen2-1.5B-instruct", "gte-qwen2-1.5b"),
    ("qwen3-embedding-4b", 4, "Qwen/Qwen3-Embedding-4B", "qwen3-4b"),
    ("gritlm-7b", 7, "GritLM/GritLM-7B", "gritlm"),
    ("gte-qwen2-7b-instruct", 7, "Alibaba-NLP/gte-Qwen2-7B-instruct", "gte-qwen2-7b"),
    ("e5-mistral-7b-instruct", 7, "intfloat/e5-mistral-7b-instruct", "e5-mistral"),
    ("qwen3-embedding-8b", 8, "Qwen/Qwen3-Embedding-8B", "qwen3-8b"),
    ("llama-embed-nemotron-8b", 8, "nvidia/llama-embed-nemotron-8b", "nemotron-8b"),
    ("bge-multilingual-gemma2", 9, "BAAI/bge-multilingual-gemma2", "bge-gemma2"),
]


@pytest.mark.parametrize(("long_name", "parameters_b", "repo_id", "short_name"), TABLE_1)
def test_the_papers_models_resolve_to_their_hub_id(
    long_name: str, parameters_b: float, repo_id: str, short_name: str
) -> None:
    row = BACKBONES[short_name]
    assert (row.repo_id, row.parameters_b) == (repo_id, parameters_b)
    for name in (short_name, long_name, repo_id, repo_id.upper(), f" {short_name} "):
        assert find_backbone(name) is row


def test_the_table_holds_the_paper_the_small_encoder_and_the_built_in_models() -> None:
    assert set(BACKBONES) == {row[3] for row in TABLE_1} | {"all-minilm", "tiny-llm", "tiny-encoder"}
    assert builtin_names() == ("tiny-llm", "tiny-encoder")


def test_every_name_means_one_row_and_every_row_is_referenced() -> None:
    names = [
        name.lower() for row in BACKBONES.values() for name in (row.name, *row.aliases, row.repo_id or row.name + "/")
    ]
    assert len(names) == len(set(names))
    for name, row in BACKBONES.items():
        assert name == row.name
        assert row.reference
        assert row.licence
        assert row.default_prompt is None or row.default_prompt in row.prompts


def test_rows_and_table_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        BACKBONES["tiny-llm"].dimension = 7  # type: ignore[misc]
    with pytest.raises(TypeError):
        BACKBONES["new"] = BACKBONES["tiny-llm"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("wrong", "closest"),
    [
        ("e5-mistrl", "e5-mistral"),
        ("tiny_llm", "tiny-llm"),
        ("QWEN3-06b", "qwen3-0.6b"),
        ("all-minilm-l12", "all-minilm"),
    ],
)
def test_an_unknown_name_lists_the_closest_and_the_built_in_ones(wrong: str, closest: str) -> None:
    with pytest.raises(ValueError, match="did you mean") as caught:
        find_backbone(wrong)
    message = str(caught.value)
    assert repr(wrong) in message
    assert repr(closest) in message
    assert "tiny-llm, tiny-encoder" in message
    assert "\n" not in message


def test_a_name_like_no_other_still_gets_a_way_out() -> None:
    assert lookup_backbone("zzzzzz") is None
    with pytest.raises(ValueError, match="built in, no download: tiny-llm") as caught:
        find_backbone("zzzzzz")
    assert "did you mean" not in str(caught.value)


def test_reading_the_table_imports_no_heavy_library() -> None:
    code = (
        "import sys; from models import BACKBONES; "
        "print(len(BACKBONES), *({'torch', 'transformers', 'peft', 'huggingface_hub'} & set(sys.modules)))"
    )
    root = Path(models.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["17"]
