"""Whole runs on a base in few bits: the stages fit the base in full precision, and the merges are made of it."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel

import lightning_app.run
from data.suites import broad_suite
from lightning_app.config import LoraConfig, StageConfig, TrainConfig
from lightning_app.run import train
from models.embedder import encode, load_embedder
from models.export import save_embedder
from models.tiny_llm import build_tiny_llm
from storage.json_file import read_json
from storage.manifest import fingerprint

SCALE = 8 / 4
TEXTS = ["3, 6, 9, 12", "1, 4, 9", "7"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """As wide as a block of 4-bit weights."""
    folder = tmp_path_factory.mktemp("models") / "base"
    return save_embedder(build_tiny_llm(hidden_size=64, layers=2, heads=2, intermediate_size=128, seed=1), folder)


@pytest.fixture(scope="module", params=["nf4", pytest.param("fp4", marks=pytest.mark.slow), "int8"])
def finished(request, base, tmp_path_factory):
    """A run of two steps on text of its own."""
    folder = tmp_path_factory.mktemp(request.param)
    rows = [
        {"text": ", ".join(str(k * j + i) for j in range(1, 8)), "label": f"by {k}"} for k in (2, 3) for i in range(30)
    ]
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TrainConfig(
        backbone=str(base),
        data=str(folder / "own.jsonl"),
        stages=(StageConfig(name="own", epochs=1, steps_per_epoch=2, learning_rate=1e-2),),
        lora=LoraConfig(r=4, alpha=8, quantization=request.param),
        merges=("last",),
        baselines=False,
        permutations=20,
        draws=0,
        output=str(folder / "run"),
    )
    whole = broad_suite()
    broad = replace(
        whole,
        texts=whole.texts[::20],
        labels=whole.labels[::20],
        blocks=whole.blocks[::20],
        nuisances={key: values[::20] for key, values in whole.nuisances.items()},
    )
    with pytest.MonkeyPatch.context() as patch:  # the figures of the rows are not what is tested
        patch.setattr(lightning_app.run, "broad_suite", lambda: broad)
        rows = train(config)["rows"]
    return SimpleNamespace(kind=request.param, output=folder / "run", rows=rows)


def test_a_stage_loads_by_plain_peft_on_the_base_in_full_precision(finished, base):
    stage = finished.output / "stages" / "1-own"
    told = read_json(stage / "adapter_config.json")
    assert Path(told["base_model_name_or_path"]) == base
    assert read_json(stage / "manifest.json")["base"]["fingerprint"] == fingerprint(base)
    embedder = load_embedder(base)
    untouched = encode(embedder, TEXTS)
    embedder[0].model = PeftModel.from_pretrained(AutoModel.from_pretrained(base), str(stage)).eval()
    found = encode(embedder, TEXTS)
    assert (found - untouched).abs().max() > 1e-4
    torch.testing.assert_close(found, encode(load_embedder(stage), TEXTS), rtol=0, atol=1e-6)


def test_the_merge_is_the_stored_base_and_the_update(finished, base):
    factors = load_file(finished.output / "stages" / "1-own" / "adapter_model.safetensors")
    before, merged = (
        load_file(base / "model.safetensors"),
        load_file(finished.output / "merged" / "last" / "model.safetensors"),
    )
    assert merged.keys() == before.keys()
    updated = 0
    for name, weight in before.items():
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_{{}}.weight"
        expected = weight.double()
        if key.format("A") in factors:
            expected += SCALE * factors[key.format("B")].double() @ factors[key.format("A")].double()
            updated += 1
        torch.testing.assert_close(merged[name].double(), expected, rtol=1e-6, atol=1e-7)
    assert updated == 14


def test_the_rows_say_on_which_base_they_were_measured(finished):
    notes = {row["name"]: row["note"] for row in finished.rows}
    assert set(notes) == {"base", "1-own", "last"}
    for name in ("base", "1-own"):
        assert notes[name] == f"measured on the base in {finished.kind}"
    stored = f"; measured on the base as it is stored, retention against the base in {finished.kind}"
    assert notes["last"].endswith(stored)
    assert read_json(finished.output / "report.json")["rows"] == finished.rows
