from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from sentence_transformers import SentenceTransformer

from lightning_app.completing import completing
from merging.engine import merge_checkpoints
from models.backbones import BACKBONES
from models.completion import complete_folder, reads_both_ways
from models.embedder import encode, load_embedder
from models.export import check_adapter_roundtrip, save_adapter
from models.lora import add_lora
from storage.manifest import verify_manifest
from tests.models.hub_folders import NAMES, edit_json, write_hub_folder

TEXTS = ["1, 2, 3", "10, 20, 30, 40, 50", "5"]
SAME = ("qwen3-4b", "qwen3-8b", "gte-qwen2-7b")
"""The tiny folders of these are those of the smaller model of their name."""
EACH = [pytest.param(name, marks=pytest.mark.slow) if name in SAME else name for name in NAMES]
PLAIN = tuple(name for name in NAMES if name != "nomic-moe")


def adapted(base: Path, name: str, **loading: bool) -> SentenceTransformer:
    """An embedder whose adapter changes every adapted weight."""
    embedder = load_embedder(base, **loading)  # type: ignore[arg-type]
    add_lora(embedder, r=2, expert_parameters=BACKBONES[name].expert_parameters)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in embedder.named_parameters():
            if ".lora_" in key:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)
    return embedder


def stage_of(embedder: SentenceTransformer, base: Path, folder: Path, *, bidirectional: bool = False) -> Path:
    return save_adapter(embedder, folder, base_name=str(base), base_folder=base, bidirectional=bidirectional)


def half_way(embedder: SentenceTransformer) -> SentenceTransformer:
    """The embedder at half of its update, folded in memory by PEFT: linear in the weights, whatever LoRA is."""
    for module in embedder.modules():
        if isinstance(module, LoraLayer):
            module.scaling = {key: value / 2 for key, value in module.scaling.items()}
    embedder[0].model = embedder[0].model.merge_and_unload()
    return embedder


@pytest.mark.parametrize("name", EACH)
def test_a_merge_from_files_is_the_merge_in_memory(name: str, tmp_path: Path) -> None:
    base = write_hub_folder(tmp_path / "hub", name)
    embedder = adapted(base, name)
    stage = stage_of(embedder, base, tmp_path / "stage")
    assert check_adapter_roundtrip(stage, embedder, TEXTS) <= 1e-5
    last, middle, arc = (tmp_path / "merged" / each for each in ("last", "middle", "arc"))
    merge_checkpoints([stage], last, method="passthrough", base=base, complete=completing())
    merge_checkpoints([base, stage], middle, method="linear", base=base, t=0.5, complete=completing())
    merge_checkpoints([base, stage], arc, method="slerp", base=base, t=0.5, complete=completing())
    expected = {last: encode(embedder, TEXTS), middle: encode(half_way(embedder), TEXTS)}
    assert (expected[last] - encode(load_embedder(base), TEXTS)).abs().max() > 1e-3
    for folder in (last, middle, arc):
        verify_manifest(folder)
        ours = encode(load_embedder(folder), TEXTS)
        if folder in expected:
            torch.testing.assert_close(ours, expected[folder], rtol=0, atol=2e-6)
        if name in PLAIN:
            plain = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
            found = plain.encode(TEXTS, convert_to_tensor=True)
            torch.testing.assert_close(found, ours, rtol=0, atol=1e-6)
            assert plain.tokenizer.padding_side == BACKBONES[name].padding_side
            assert plain.prompts == load_embedder(base).prompts
        else:
            assert "Only embarc loads this folder" in (folder / "README.md").read_text()


def test_the_prompt_of_gritlm_stays_out_of_the_mean(tmp_path: Path) -> None:
    base = write_hub_folder(tmp_path / "hub", "gritlm")
    whole = tmp_path / "whole"
    merge_checkpoints([base, base], whole, method="linear", base=base, t=0.5, complete=completing())
    plain = SentenceTransformer(str(whole), device="cpu", local_files_only=True)
    prompt = "<|embed|>\n"
    assert plain.prompts["document"] == prompt
    found = plain.encode(TEXTS, prompt=prompt, convert_to_tensor=True)
    torch.testing.assert_close(found, encode(load_embedder(base), TEXTS, prompt=prompt), rtol=0, atol=1e-6)
    edit_json(whole / "1_Pooling" / "config.json", include_prompt=True)
    other = SentenceTransformer(str(whole), device="cpu", local_files_only=True)
    assert (other.encode(TEXTS, prompt=prompt, convert_to_tensor=True) - found).abs().max() > 1e-2


def test_a_mask_that_was_removed_stays_away(tmp_path: Path) -> None:
    base = write_hub_folder(tmp_path / "hub", "qwen3-0.6b")
    embedder = adapted(base, "qwen3-0.6b", bidirectional=True)
    stage = stage_of(embedder, base, tmp_path / "stage", bidirectional=True)
    recorded = json.loads((stage / "manifest.json").read_text())["base"]
    assert recorded["bidirectional"] is True
    assert recorded["plain_peft"]["loads"] is False
    assert "causal mask" in recorded["plain_peft"]["reason"]
    assert check_adapter_roundtrip(stage, embedder, TEXTS) <= 1e-6
    assert reads_both_ways(stage)
    assert not reads_both_ways(base)
    # The merge is told by its input, not by its caller.
    merge_checkpoints([stage], tmp_path / "last", method="passthrough", base=base, complete=completing())
    assert reads_both_ways(tmp_path / "last")
    plain = SentenceTransformer(str(tmp_path / "last"), device="cpu", local_files_only=True)
    torch.testing.assert_close(plain.encode(TEXTS, convert_to_tensor=True), encode(embedder, TEXTS), rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["gritlm", "gte-large", "gte-qwen2-1.5b", "e5-mistral", "nomic-moe"])
def test_completing_twice_changes_nothing(name: str, tmp_path: Path) -> None:
    base = write_hub_folder(tmp_path / "hub", name)
    folder = Path(shutil.copytree(base, tmp_path / "copy"))
    (folder / "modeling_own.py").write_text("raise SystemExit")
    said = complete_folder(folder, base=base)
    first = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert complete_folder(folder) == said
    assert {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == first
    if name == "nomic-moe":
        assert said is not None
    else:
        assert said is None
        assert not list(folder.rglob("*.py"))
        assert "auto_map" not in (folder / "config.json").read_text()
        assert "auto_map" not in (folder / "tokenizer_config.json").read_text()


def test_a_model_that_is_not_in_the_table_keeps_its_code(tmp_path: Path) -> None:
    base = write_hub_folder(tmp_path / "hub", "me5-large")
    folder = Path(shutil.copytree(base, tmp_path / "copy"))
    edit_json(folder / "config.json", auto_map={"AutoModel": "modeling_own.Model"})
    (folder / "modeling_own.py").write_text("")
    assert complete_folder(folder) is None
    assert (folder / "modeling_own.py").is_file()
    assert "auto_map" in (folder / "config.json").read_text()


def test_the_precision_that_was_asked_for_is_the_one_that_is_loaded(tmp_path: Path) -> None:
    base = write_hub_folder(tmp_path / "hub", "me5-large")
    edit_json(base / "config.json", drop=("dtype",), torch_dtype="float32")
    merge_checkpoints(
        [base, base], tmp_path / "half", method="linear", base=base, t=0.5, dtype="bfloat16", complete=completing()
    )
    plain = SentenceTransformer(str(tmp_path / "half"), device="cpu", local_files_only=True)
    assert next(plain.parameters()).dtype == torch.bfloat16
