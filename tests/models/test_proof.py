"""What a loaded embedder has to prove, on folders that are wrong in one place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file

from models.embedder import encode, load_embedder
from tests.models.hub_folders import edit_json, write_hub_folder


def change_tensors(file: Path, *, drop: str = "", **added: torch.Tensor) -> None:
    """Write the file again, without one tensor and with others."""
    state = load(file.read_bytes())
    assert not drop or drop in state, sorted(state)
    save_file({name: state[name] for name in state if name != drop} | added, file, metadata={"format": "pt"})


def refused(cache: Path, name: str, message: str) -> str:
    """The one-line message with which the backbone is refused; it names the folder."""
    with pytest.raises(ValueError, match=message) as caught:
        load_embedder(name, cache=cache, offline=True)
    assert "\n" not in str(caught.value)
    assert str(cache) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("qwen3-0.6b", "layers.1.mlp.up_proj.weight"),
        ("gritlm", "model.layers.0.self_attn.q_proj.weight"),
        ("gte-large", "encoder.layer.1.attention.qkv_proj.bias"),
        ("gte-multilingual", "new.embeddings.LayerNorm.weight"),
        ("nemotron-8b", "norm.weight"),
    ],
)
def test_a_missing_tensor_is_refused_by_its_name(name: str, tensor: str, tmp_path: Path) -> None:
    change_tensors(write_hub_folder(tmp_path, name) / "model.safetensors", drop=tensor)
    message = refused(tmp_path, name, "1 missing, first ")
    assert f"first {tensor.removeprefix('model.')};" in message


def test_a_plain_folder_with_a_missing_tensor_is_refused_too(tiny_folder: Path, tmp_path: Path) -> None:
    for file in (each for each in tiny_folder.rglob("*") if each.is_file()):
        copy = tmp_path / file.relative_to(tiny_folder)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(file.read_bytes())
    change_tensors(tmp_path / "model.safetensors", drop="layers.0.input_layernorm.weight")
    with pytest.raises(ValueError, match=r"1 missing, first layers\.0\.input_layernorm\.weight; fetch"):
        load_embedder(tmp_path)


def test_a_tensor_without_a_place_is_refused_and_a_head_is_not(tmp_path: Path) -> None:
    file = write_hub_folder(tmp_path, "nemotron-8b") / "model.safetensors"
    change_tensors(
        file, **{"lm_head.weight": torch.ones(2, 2), "layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    )
    load_embedder("nemotron-8b", cache=tmp_path, offline=True)
    change_tensors(file, **{"layers.0.mlp.experts.weight": torch.ones(2, 2)})
    refused(tmp_path, "nemotron-8b", r"got 1 more, first layers\.0\.mlp\.experts\.weight; .*another architecture")


def test_shards_are_read_by_their_index(tmp_path: Path) -> None:
    folder = write_hub_folder(tmp_path, "e5-mistral")
    state = load((folder / "model.safetensors").read_bytes())
    expected = encode(load_embedder("e5-mistral", cache=tmp_path, offline=True), ["1, 2"])
    (folder / "model.safetensors").unlink()
    shards = {"a.safetensors": sorted(state)[:9], "b.safetensors": sorted(state)[9:]}
    for file, names in shards.items():
        save_file({name: state[name] for name in names}, folder / file, metadata={"format": "pt"})
    placed = {name: file for file, names in shards.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    assert torch.equal(encode(load_embedder("e5-mistral", cache=tmp_path, offline=True), ["1, 2"]), expected)
    change_tensors(folder / "b.safetensors", drop="norm.weight")
    index = folder / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"metadata": {}, "weight_map": {k: v for k, v in placed.items() if k != "norm.weight"}})
    )
    refused(tmp_path, "e5-mistral", r"1 missing, first norm\.weight")


def test_weights_that_are_not_finite_are_refused_at_load(tmp_path: Path) -> None:
    file = write_hub_folder(tmp_path, "embeddinggemma") / "3_Dense" / "model.safetensors"
    change_tensors(file, **{"linear.weight": torch.full((16, 32), torch.nan)})
    refused(tmp_path, "embeddinggemma", r"expected finite weights, got NaN or infinity in 3\.linear\.weight")


def test_pooling_other_than_the_rows_is_refused(tmp_path: Path) -> None:
    folder = write_hub_folder(tmp_path, "me5-large")
    edit_json(folder / "1_Pooling" / "config.json", pooling_mode_mean_tokens=False, pooling_mode_cls_token=True)
    refused(tmp_path, "me5-large", "backbone me5-large: expected mean pooling .*, got cls from")


@pytest.mark.parametrize(
    ("name", "message"), [("gte-large", "expected no Normalize"), ("me5-large", "expected a Norm")]
)
def test_normalisation_other_than_the_rows_is_refused(name: str, message: str, tmp_path: Path) -> None:
    file = write_hub_folder(tmp_path, name) / "modules.json"
    modules = json.loads(file.read_text())
    last = {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
    file.write_text(json.dumps([*modules, last] if name == "gte-large" else modules[:-1]))
    refused(tmp_path, name, f"backbone {name}: {message}")


@pytest.mark.parametrize(("place", "kind"), [("1_Pooling", "Pooling"), ("2_Dense", "Dense")])
def test_a_module_of_another_width_is_refused(place: str, kind: str, tmp_path: Path) -> None:
    folder = write_hub_folder(tmp_path, "embeddinggemma")
    if kind == "Dense":
        edit_json(folder / place / "config.json", in_features=12)
        save_file({"linear.weight": torch.ones(32, 12)}, folder / place / "model.safetensors")
    else:
        edit_json(folder / place / "config.json", word_embedding_dimension=12)
    refused(tmp_path, "embeddinggemma", f"expected a {kind} module of width 16, .*, got 12")


def test_texts_that_do_not_end_with_the_token_that_is_pooled_are_refused(tmp_path: Path) -> None:
    """Qwen3-Embedding ends a text with the padding token, which only its tokenizer.json says."""
    folder = write_hub_folder(tmp_path, "qwen3-0.6b")
    edit_json(folder / "tokenizer.json", post_processor=None)
    refused(tmp_path, "qwen3-0.6b", r"end with '<\|endoftext\|>', .*, got '1'")


def test_begin_and_end_that_the_settings_ask_for_are_both_written(tmp_path: Path) -> None:
    folder = write_hub_folder(tmp_path, "bge-gemma2")
    edit_json(folder / "tokenizer.json", post_processor=None)
    tokenizer = load_embedder("bge-gemma2", cache=tmp_path, offline=True).tokenizer
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("1, 2")["input_ids"])
    assert (tokens[0], tokens[-1], tokens.count("<bos>"), tokens.count("<eos>")) == ("<bos>", "<eos>", 1, 1)
