"""The layout of sentence-transformers 5, whose loading of a folder is transcribed here from its version 5.2.3."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

from models.compat_layout import compat_layout
from models.completion import complete_folder
from models.embedder import load_embedder
from tests.models.hub_folders import NAMES, edit_json, write_hub_folder

TEXTS = ["1, 2, 3", "10, 20, 30, 40, 50", "5"]
# What the constructors of version 5.2.3 take; Pooling.load, Dense.load and Transformer.load hand them the whole file.
TAKEN = {
    "Transformer": {"max_seq_length", "do_lower_case", "model_args", "tokenizer_args", "config_args", "backend"},
    "Pooling": {
        *("word_embedding_dimension", "pooling_mode", "pooling_mode_cls_token", "pooling_mode_max_tokens"),
        *("pooling_mode_mean_tokens", "pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens"),
        *("pooling_mode_lasttoken", "include_prompt"),
    },
    "Dense": {"in_features", "out_features", "bias", "activation_function", "init_weight", "init_bias"},
    "Normalize": set(),
}
MODULES = {f"sentence_transformers.models.{kind}": kind for kind in TAKEN}


def load_as_version_5(folder: Path) -> dict[str, dict[str, object]]:
    """The arguments that version 5 gives each module, or what it fails with."""
    found = {}
    for module in json.loads((folder / "modules.json").read_text()):
        kind = MODULES[module["type"]]  # import_from_string: the classes lie nowhere else
        name = "sentence_bert_config.json" if kind == "Transformer" else "config.json"
        file = folder / module["path"] / name
        arguments = json.loads(file.read_text()) if file.is_file() and kind != "Normalize" else {}
        if unknown := set(arguments) - TAKEN[kind]:
            raise TypeError(f"{kind}.__init__() got an unexpected keyword argument {unknown}")
        found[module["path"] or "0"] = arguments
    return found


def embeddings(folder: Path) -> torch.Tensor:
    plain = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return plain.encode(TEXTS, convert_to_tensor=True)


@pytest.mark.parametrize("name", ["qwen3-0.6b", "e5-mistral", "embeddinggemma", "gte-large", "me5-large"])
def test_what_version_6_saves_is_rewritten_for_both(name: str, tmp_path: Path) -> None:
    base = write_hub_folder(tmp_path / "hub", name)
    folder = tmp_path / "saved"
    load_embedder(base).save_pretrained(str(folder), create_model_card=False)
    complete_folder(folder, base=base)
    with pytest.raises((KeyError, TypeError)):
        load_as_version_5(folder)
    before = embeddings(folder)
    compat_layout(folder)
    loaded = load_as_version_5(folder)
    pooling = loaded["1_Pooling"]
    assert pooling["word_embedding_dimension"] == 16
    assert [key for key, value in pooling.items() if value is True and key != "include_prompt"] == [
        {"qwen3-0.6b": "pooling_mode_lasttoken", "e5-mistral": "pooling_mode_lasttoken"}.get(
            name, "pooling_mode_cls_token" if name == "gte-large" else "pooling_mode_mean_tokens"
        )
    ]
    config = json.loads((folder / "config.json").read_text())
    assert config["torch_dtype"] == config["dtype"] == "float32"
    assert torch.equal(embeddings(folder), before)
    once = {path: path.read_bytes() for path in folder.rglob("*.json")}
    compat_layout(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*.json")} == once


@pytest.mark.parametrize("name", [name for name in NAMES if name in ("gritlm", "nemotron-8b", "gte-qwen2-7b")])
def test_a_decoder_without_its_mask_is_refused(name: str, tmp_path: Path) -> None:
    base = write_hub_folder(tmp_path / "hub", name)
    folder = Path(shutil.copytree(base, tmp_path / "copy"))
    complete_folder(folder, base=base)
    before = {path: path.read_bytes() for path in folder.rglob("*.json")}
    with pytest.raises(ValueError, match=r"--layout compat: expected .* without causal mask \(is_causal false\)"):
        compat_layout(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*.json")} == before


def test_what_version_5_has_not_is_refused(tmp_path: Path) -> None:
    base = write_hub_folder(tmp_path / "hub", "me5-large")
    folder = Path(shutil.copytree(base, tmp_path / "copy"))
    edit_json(folder / "1_Pooling" / "config.json", pooling_mode="median")
    with pytest.raises(ValueError, match=r"1_Pooling/config.json: --layout compat: expected a pooling of .*'median'"):
        compat_layout(folder)
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "custom_pooling.Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=r"expected modules of Transformer, .* got custom_pooling.Pooling"):
        compat_layout(folder)
    (folder / "modules.json").unlink()
    with pytest.raises(ValueError, match=r"expected a sentence-transformers folder, found no modules.json"):
        compat_layout(folder)


def test_a_model_that_only_this_package_loads_is_refused(tmp_path: Path) -> None:
    base = write_hub_folder(tmp_path / "hub", "nomic-moe")
    folder = Path(shutil.copytree(base, tmp_path / "copy"))
    complete_folder(folder, base=base)
    before = {path: path.read_bytes() for path in folder.rglob("*.json")}
    with pytest.raises(ValueError, match=r"--layout compat: expected .* got a NomicBert with a mixture of experts"):
        compat_layout(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*.json")} == before
