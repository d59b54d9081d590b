from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

from models.attention import reads_ahead, remove_causal_mask
from models.embedder import encode, load_embedder
from models.export import save_embedder
from tests.models.hub_folders import edit_json, write_hub_folder


def test_a_decoder_reads_ahead_only_without_its_mask(mistral_folder: Path, bert_folder: Path) -> None:
    decoder = load_embedder(mistral_folder)
    assert not reads_ahead(decoder)
    remove_causal_mask(decoder)
    assert reads_ahead(decoder)
    encoder = load_embedder(bert_folder)
    remove_causal_mask(encoder)
    assert not hasattr(encoder[0].model.config, "is_causal")
    assert reads_ahead(encoder)


def test_the_probe_leaves_the_mode_as_it_was(tiny_folder: Path) -> None:
    embedder = load_embedder(tiny_folder).train()
    reads_ahead(embedder)
    assert embedder[0].model.training


def test_states_that_are_not_finite_prove_nothing(tiny_folder: Path) -> None:
    embedder = load_embedder(tiny_folder)
    embedder[0].model.norm.register_forward_hook(lambda _module, _given, states: states * torch.nan)
    with pytest.raises(ValueError, match="qwen3 model: expected finite states, got NaN"):
        reads_ahead(embedder)


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("qwen3-0.6b", {"is_causal": False}, "expected causal attention .*, got bidirectional from"),
        ("embeddinggemma", {"use_bidirectional_attention": False}, "expected bidirectional attention .*, got causal"),
    ],
)
def test_attention_other_than_the_rows_is_refused(
    name: str, setting: dict[str, bool], message: str, tmp_path: Path
) -> None:
    edit_json(write_hub_folder(tmp_path, name) / "config.json", **setting)
    with pytest.raises(ValueError, match=f"backbone {name}: {message}"):
        load_embedder(name, cache=tmp_path, offline=True)


@pytest.mark.parametrize("name", ["gritlm", "gte-qwen2-1.5b", "nemotron-8b"])
def test_a_saved_decoder_stays_bidirectional_for_everyone(name: str, tmp_path: Path) -> None:
    write_hub_folder(tmp_path / "hub", name)
    embedder = load_embedder(name, cache=tmp_path / "hub", offline=True)
    folder = save_embedder(embedder, tmp_path / "saved")
    plain = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    assert reads_ahead(plain)
    texts = ["1, 2, 3", "4, 8"]
    torch.testing.assert_close(plain.encode(texts, convert_to_tensor=True), encode(embedder, texts), rtol=0, atol=1e-6)
