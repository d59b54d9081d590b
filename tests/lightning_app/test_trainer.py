"""What the settings of a run make of a Trainer."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch

from lightning_app.config import StageConfig, TrainConfig
from lightning_app.resumable_loops import ResumableFitLoop
from lightning_app.sharded_strategy import ShardedStrategy
from lightning_app.stages import read_run_data
from lightning_app.trainer import WatchedDDP, build_trainer, choose_strategy


@pytest.mark.parametrize(
    ("settings", "kind", "start"),
    [
        ({"devices": 2}, WatchedDDP, "popen"),
        ({"devices": 2, "strategy": "ddp_fork"}, WatchedDDP, "fork"),
        ({"devices": 1, "num_nodes": 2}, WatchedDDP, "popen"),
        ({"devices": 2, "num_nodes": 2, "strategy": "fsdp"}, ShardedStrategy, None),
    ],
)
def test_several_ranks_wait_for_each_other_as_long_as_asked(settings, kind, start):
    strategy = choose_strategy(TrainConfig(timeout=77.0, **settings))
    assert isinstance(strategy, kind)
    assert strategy._timeout == timedelta(seconds=77)
    assert getattr(strategy, "_start_method", None) == start


@pytest.mark.parametrize("strategy", ["auto", "ddp", "ddp_fork", "fsdp"])
def test_one_device_has_nothing_to_share(strategy):
    assert choose_strategy(TrainConfig(strategy=strategy)) == "auto"


@pytest.mark.parametrize("asked", [True, False])
def test_kernels_are_deterministic_when_asked_for(tmp_path: Path, asked):
    before = torch.are_deterministic_algorithms_enabled()
    config = TrainConfig(accelerator="cpu", deterministic=asked, max_steps=5)
    try:
        trainer = build_trainer(
            config, StageConfig(name="six"), folder=tmp_path, name="1-six", callbacks=[], selects=False
        )
        assert torch.are_deterministic_algorithms_enabled() is asked
    finally:
        torch.use_deterministic_algorithms(before)
    assert isinstance(trainer.fit_loop, ResumableFitLoop)
    assert (trainer.fit_loop.max_steps, trainer.fit_loop.max_epochs) == (5, StageConfig(name="six").epochs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_workers": -1}, "--num-workers: expected at least 0, got -1"),
        ({"every_n_train_steps": -2}, "--every-n-train-steps: expected at least 0, got -2"),
        ({"timeout": 0.0}, "--timeout: expected seconds, above 0 and at most 1e6, got 0.0"),
        ({"timeout": float("nan")}, "--timeout: expected seconds, above 0 and at most 1e6, got nan"),
    ],
)
def test_settings_out_of_range_are_refused_by_their_flag(settings, message):
    with pytest.raises(ValueError, match=message):
        read_run_data(TrainConfig(**settings))
