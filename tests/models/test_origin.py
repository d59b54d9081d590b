from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from models.attention import reads_ahead
from models.embedder import encode, load_embedder
from models.origin import row_of
from tests.models.hub_folders import NAMES, edit_json, tiny_rows, write_hub_folder

TEXTS = ["1, 2, 3", "2, 4, 8, 16, 32"]


@pytest.mark.parametrize("name", NAMES)
def test_a_snapshot_by_its_path_is_the_backbone(name: str, tmp_path: Path) -> None:
    folder = write_hub_folder(tmp_path, name)
    row = row_of(folder)
    assert row is not None
    assert row.name == name
    by_path, by_name = load_embedder(folder), load_embedder(name, cache=tmp_path, offline=True)
    assert torch.equal(encode(by_path, TEXTS), encode(by_name, TEXTS))
    assert by_path.prompts == by_name.prompts


@pytest.mark.parametrize("name", ["gritlm", "nemotron-8b", "gte-qwen2-1.5b", "nomic-moe"])
def test_a_copy_of_a_snapshot_is_known_by_its_code(name: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(write_hub_folder(tmp_path, name), tmp_path / "copy"))
    expected = load_embedder(name, cache=tmp_path, offline=True)
    loaded = load_embedder(folder)
    assert reads_ahead(loaded)
    row = row_of(folder)
    assert row is not None
    assert row.name == name
    assert loaded.tokenizer.padding_side == expected.tokenizer.padding_side
    assert torch.equal(encode(loaded, TEXTS), encode(expected, TEXTS))


def test_code_of_two_rows_is_told_apart_by_the_size(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(write_hub_folder(tmp_path, "gte-qwen2-7b"), tmp_path / "copy"))
    with tiny_rows(17):
        assert row_of(folder) is None
    edit_json(folder / "config.json", auto_map={"AutoModel": "modeling_other.Other"})
    assert row_of(folder) is None


def test_a_row_by_code_does_not_bind_the_folders_pooling(tmp_path: Path) -> None:
    """Somebody's own model that was trained from GritLM and pools the last token."""
    folder = Path(shutil.copytree(write_hub_folder(tmp_path, "e5-mistral"), tmp_path / "copy"))
    edit_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_gritlm7b.MistralForCausalLM"})
    loaded = load_embedder(folder)
    assert loaded[1].pooling_mode == "lasttoken"
    assert reads_ahead(loaded)


def test_embeddings_of_another_length_than_the_rows_are_refused(tmp_path: Path) -> None:
    folder = write_hub_folder(tmp_path, "me5-large")
    with tiny_rows(24):
        for given in ("me5-large", "intfloat/multilingual-e5-large", folder):
            with pytest.raises(ValueError, match="backbone me5-large: expected embeddings of 24 .*, got 16 from"):
                load_embedder(given, cache=tmp_path, offline=True)
        assert encode(load_embedder(shutil.copytree(folder, tmp_path / "own")), TEXTS).shape == (2, 16)
