"""A resume with allowed changes goes on with them, and says what they are."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_app.changes import Change
from lightning_app.checkpoint_io import SafetensorsIO
from lightning_app.command_line import FAILED, main
from lightning_app.config import LoraConfig, StageConfig, TrainConfig
from lightning_app.fingerprints import fingerprint_backbone, fingerprint_data
from lightning_app.run import train
from lightning_app.starting import first_longer
from storage.json_file import read_json, write_json
from storage.tensor_file import read_tensors, write_tensors
from tests.conftest import short_texts


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run of one stage of two epochs of two steps, ended after the first; next to nothing is measured."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(tiny_folder, folder / "base")
    data = folder / "data.jsonl"
    texts = short_texts()
    rows = [{"text": text, "label": str(label)} for text, label in zip(texts.texts, texts.labels, strict=True)]
    data.write_text("\n".join(map(json.dumps, rows)))
    stage = StageConfig(name="one", epochs=2, steps_per_epoch=2, classes=2, texts_per_class=4)
    config = TrainConfig(
        data=str(data),
        backbone=str(folder / "base"),
        stages=(stage,),
        lora=LoraConfig(r=2, alpha=4, dropout=0.0),
        merges=(),
        baselines=False,
        permutations=2,
        draws=0,
        seed=3,
        max_steps=2,
        output=str(folder / "run"),
    )
    train(config)
    return config


@pytest.fixture
def config(finished: TrainConfig, tmp_path: Path) -> TrainConfig:
    """That run, copied."""
    shutil.copytree(finished.output, tmp_path / "run")
    return replace(finished, output=str(tmp_path / "run"))


def state_of(config: TrainConfig) -> dict[str, Any]:
    return SafetensorsIO().load_checkpoint(Path(config.output) / "resume" / "1-one")


def test_a_run_is_made_longer_on_a_disk_that_was_full(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A finished stage goes on from its state: two steps more, from the weights and moments that it had."""
    folder = Path(config.output)
    before = state_of(config)
    assert before["global_step"] == 2
    longer = replace(config, max_steps=4, resume=True, allow_changes=("max-steps", "devices"))
    write_json(tmp_path / "longer.json", longer.to_dict())

    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
        assert main(TrainConfig, "lightning_app.run:train", argv=["--config", str(tmp_path / "longer.json")]) == FAILED
    said = capfd.readouterr().err
    assert "--allow-changes: max_steps: 2 before, 4 now" in said
    assert "--allow-changes devices: nothing of that name has changed" in said
    assert "Traceback" not in said
    last = said.strip().splitlines()[-1]
    assert re.fullmatch(
        r"failed: .*resume/1-one: expected \d+ bytes of room on its disk, got 10 bytes free; the state of epoch \d, step 2 is "
        "kept; make room and go on with --resume",
        last,
    )
    assert state_of(config)["global_step"] == 2

    train(replace(longer, allow_changes=()))
    after = state_of(longer)
    assert after["global_step"] == 4
    steps = [epoch["step"] for epoch in read_json(folder / "stages" / "1-one" / "metrics.json")["epochs"]]
    assert steps == [2, 4]
    moments = [state["optimizer_states"][0]["state"][0]["step"].item() for state in (before, after)]
    assert moments == [2, 4]
    assert read_json(folder / "config.json")["max_steps"] == 4
    assert read_json(folder / "config.json")["resume"] is False
    assert read_json(folder / "inputs.json")["changes"] == [{"name": "max_steps", "before": 2, "now": 4}]
    with pytest.raises(ValueError, match="max_steps: 4 before, 2 now"):
        train(replace(config, resume=True))


def test_the_state_of_a_run_is_small_and_holds_no_pickle(config: TrainConfig) -> None:
    folder = Path(config.output)
    files = [path for path in (folder / "resume").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    adapter = (folder / "stages" / "1-one" / "adapter_model.safetensors").stat().st_size
    assert sum(path.stat().st_size for path in files) < 4 * adapter + 100_000


def test_another_backbone_under_the_same_name_is_seen(config: TrainConfig) -> None:
    folder = Path(config.output)
    told = read_json(folder / "inputs.json")
    assert told == {**fingerprint_data(config), **fingerprint_backbone(config), "changes": []}
    write_json(folder / "inputs.json", told | {"backbone": told["backbone"] | {"files": "0" * 64}})
    with pytest.raises(ValueError, match=r"got others \(backbone\.files: .* before, .* now\)") as error:
        train(replace(config, resume=True))
    assert "--allow-changes backbone.files" in str(error.value)
    assert "\n" not in str(error.value)


def test_another_backbone_has_another_fingerprint(config: TrainConfig, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(config.backbone, folder)
    here = replace(config, backbone=str(folder))
    before = fingerprint_backbone(here)["backbone"]
    assert before == fingerprint_backbone(config)["backbone"]
    tokenizer = folder / "tokenizer_config.json"
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | {"model_max_length": 77}))
    other_files = fingerprint_backbone(here)["backbone"]
    assert other_files["files"] != before["files"]
    assert other_files["weights"] == before["weights"]
    tensors = read_tensors(folder / "model.safetensors")
    first = next(iter(tensors))
    write_tensors(folder / "model.safetensors", tensors | {first: tensors[first] + 1}, {"format": "pt"})
    other_weights = fingerprint_backbone(here)["backbone"]
    assert other_weights["weights"] != before["weights"]
    assert other_weights["files"] == other_files["files"]


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ([("max_steps", 4, 8)], 0),
        ([("max_steps", 4, -1)], 0),
        ([("max_steps", -1, 8)], None),
        ([("max_steps", 8, 4)], None),
        ([("stages.2.epochs", 1, 2), ("stages.1.patience", 1, 2)], 1),
        ([("stages.1.epochs", 2, 1), ("stages.1.learning_rate", 1.0, 2.0)], None),
        ([("stages.1.epochs", None, 3)], None),
        ([("devices", 1, 2)], None),
    ],
)
def test_which_stage_is_longer(changes: list[tuple[str, Any, Any]], first: int | None) -> None:
    assert first_longer([Change(*each) for each in changes]) == first


@pytest.mark.slow
def test_a_run_goes_on_with_more_devices(config: TrainConfig, tmp_path: Path) -> None:
    """The same global batches by two ranks: as the run that stays with one, but for the order of sums."""
    shutil.copytree(config.output, tmp_path / "one")
    train(replace(config, output=str(tmp_path / "one"), resume=True, max_steps=4, allow_changes=("max_steps",)))
    allowed = ("devices", "strategy", "max_steps")
    two = replace(config, devices=2, strategy="ddp_fork", resume=True, max_steps=4, allow_changes=allowed)
    train(two)
    expected = SafetensorsIO().load_checkpoint(tmp_path / "one" / "resume" / "1-one")
    found = state_of(two)
    assert found["global_step"] == expected["global_step"] == 4
    for name, tensor in expected["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][name], tensor, atol=1e-4, rtol=1e-3)
