"""A stage that averages its weights keeps the average; one whose floor nothing reaches says so."""

import pytest
import torch

from data.suites import selection_suite
from lightning_app import preparation, stages
from lightning_app.config import LoraConfig, StageConfig, TrainConfig
from lightning_app.fitting import fit_stage
from lightning_app.preparation import prepare
from lightning_app.stages import read_run_data
from storage.json_file import read_json
from storage.tensor_file import read_tensors
from tests.lightning_app.conftest import part_of


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    small = part_of(selection_suite(), 12)
    monkeypatch.setattr(stages, "selection_suite", lambda: small)
    monkeypatch.setattr(preparation, "check_lengths", lambda *_, **__: None)


@pytest.fixture
def trained(tiny_folder, tmp_path):
    """``trained(name, ...)``: the folder of a stage that was fitted with these settings."""

    def fitted(name, *, floor=0.0, **settings):
        stage = StageConfig(
            name="six", families=("six",), epochs=1, steps_per_epoch=3, learning_rate=1e-2, retention_floor=floor
        )
        folder = tmp_path / name
        config = TrainConfig(
            backbone=str(tiny_folder),
            stages=(stage,),
            lora=LoraConfig(r=2),
            merges=(),
            accelerator="cpu",
            output=str(folder),
            **settings,
        )
        run = prepare(config, read_run_data(config))
        fit_stage(run, run.data.stages[0], folder / "stages" / "1-six", folder=folder, suites={})
        return folder / "stages" / "1-six"

    return fitted


def test_what_is_kept_is_the_average(trained):
    """A decay of 0 forgets all but the last step."""
    plain, forgetful, averaged = (
        read_tensors(trained(name, **settings) / "adapter_model.safetensors")
        for name, settings in (
            ("plain", {}),
            ("forgetful", {"average": "ema", "ema_decay": 0.0}),
            ("averaged", {"average": "ema", "ema_decay": 0.9}),
        )
    )
    assert all(torch.equal(plain[name], forgetful[name]) for name in plain)
    assert any(not torch.equal(plain[name], averaged[name]) for name in plain)


def test_a_floor_that_no_epoch_reaches_is_told(trained, capsys):
    folder = trained("floor", floor=1.0)
    told = read_json(folder / "metrics.json")
    assert (told["best_epoch"], told["retention_floor_reached"]) == (1, False)
    assert not any("selection/" in key for epoch in told["epochs"] for key in epoch)
    shown = " ".join("".join(capsys.readouterr()).split())
    assert "stage 1-six: no epoch keeps --stages.N.retention-floor 1; epoch 1, which keeps most, is taken" in shown
