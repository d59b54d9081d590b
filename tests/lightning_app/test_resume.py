"""Fits that were stopped or killed at a batch and gone on with, against the same fits left alone: bit for bit."""

import itertools
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from lightning_app.config import StageConfig, TrainConfig
from lightning_app.resuming import fit
from lightning_app.trainer import build_trainer
from storage.json_file import read_json
from tests.lightning_app.resumed_fit import (
    BATCHES,
    NAME,
    Case,
    check_equal,
    curves,
    interrupted,
    metrics,
    run_case,
    said,
)

STOPPED = {"mid-epoch": 3, "epoch end": 4, "second epoch": 6}
"""Steps after which a signal comes."""
KILLED = {"mid-epoch": 4, "epoch end": 6, "second epoch": 8}
"""Steps at whose end a fit is killed that has saved its state two steps before, and has logged one since."""
CODES = {"SIGTERM": 143, "SIGINT": 130, "batch": -9}


@pytest.fixture(scope="module")
def whole(tiny_folder, tmp_path_factory):
    """``whole(dropout=..., ...)``: the folder of an uninterrupted fit."""
    made = {}

    def folder(**settings):
        key = tuple(sorted(settings.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("whole")
            assert run_case(Case(base=tiny_folder, folder=made[key], **settings)) == 0, said(made[key])
        return made[key]

    return folder


def check(whole, tiny_folder: Path, folder: Path, *, how: str, place: str, **settings) -> None:
    killed = how == "batch"
    settings |= {"log_every_n_steps": 1 if killed else 2}
    after = (KILLED if killed else STOPPED)[place]
    case = Case(base=tiny_folder, folder=folder, how=how, ends_after=after, every_n_train_steps=2, **settings)
    check_equal(interrupted(case, expected=CODES[how]), whole(**settings))
    assert "not resumable" not in said(folder)


def state_of(folder: Path) -> dict:
    """The plain part of the saved state."""
    return read_json(folder / "resume" / NAME / "state.json")


QUICK = [
    (0.0, 0, 0, "epoch end", 1, "SIGTERM"),
    (0.1, 0, 0, "mid-epoch", 1, "batch"),
    (0.1, 0, 0, "second epoch", 1, "SIGINT"),
    (0.1, 1, 2, "mid-epoch", 1, "SIGTERM"),
    pytest.param(0.1, 1, 2, "second epoch", 1, "batch", marks=pytest.mark.slow),
    (0.1, 0, 0, "mid-epoch", 2, "SIGTERM"),
    (0.1, 0, 0, "mid-epoch", 2, "batch"),
]
ALL = list(itertools.product((0.0, 0.1), (0, 1), (0, 2), ("mid-epoch", "epoch end"), (1, 2), ("SIGTERM", "batch")))


@pytest.mark.parametrize(("dropout", "seed", "workers", "place", "ranks", "how"), QUICK)
def test_a_stopped_fit_ends_as_one_left_alone(whole, tiny_folder, tmp_path, dropout, seed, workers, place, ranks, how):
    check(whole, tiny_folder, tmp_path, how=how, place=place, dropout=dropout, seed=seed, workers=workers, ranks=ranks)


@pytest.mark.slow
@pytest.mark.parametrize(("dropout", "seed", "workers", "place", "ranks", "how"), ALL)
def test_the_whole_matrix(whole, tiny_folder, tmp_path, dropout, seed, workers, place, ranks, how):
    check(whole, tiny_folder, tmp_path, how=how, place=place, dropout=dropout, seed=seed, workers=workers, ranks=ranks)


@pytest.mark.parametrize("hook", ["epoch", pytest.param("next epoch", marks=pytest.mark.slow), "end"])
def test_a_fit_that_is_killed_between_epochs_or_after_the_last_one_ends_alike(whole, tiny_folder, tmp_path, hook):
    """Killed after the last epoch's state was saved, a fit has still to keep its best weights."""
    steps = 2 * BATCHES if hook == "end" else BATCHES
    case = Case(base=tiny_folder, folder=tmp_path, how=hook, ends_after=steps)
    check_equal(interrupted(case, expected=-9), whole())
    assert [step for step, _ in curves(tmp_path)["selection/silhouette_true"]] == [3, 7]


@pytest.mark.parametrize(("how", "code"), [("SIGTERM", 143), pytest.param("end", -9, marks=pytest.mark.slow)])
def test_an_early_stop_is_not_forgotten(whole, tiny_folder, tmp_path, how, code):
    """Without a learning rate the second epoch is no better than the first, and a patience of 0 ends the fit there."""
    settings = {"patience": 0, "epochs": 4, "learning_rate": 0.0}
    assert len(metrics(whole(**settings))["epochs"]) == 2
    case = Case(base=tiny_folder, folder=tmp_path, how=how, ends_after=2 * BATCHES, **settings)
    check_equal(interrupted(case, expected=code), whole(**settings))


def test_a_rank_asks_no_other_before_the_fit(tmp_path, monkeypatch):
    """In later stages the others are connected and ahead: they are in the fit, and would not answer."""

    def ask(trainer):
        raise AssertionError("Trainer.log_dir is the same on all ranks, so all of them have to ask")

    stage = StageConfig(name="short", families=("six",))
    config = TrainConfig(accelerator="cpu")
    trainer = build_trainer(config, stage, folder=tmp_path, name=NAME, callbacks=[], selects=False)
    (tmp_path / "tensorboard" / NAME).mkdir(parents=True)
    events = tmp_path / "tensorboard" / NAME / "events.out.tfevents.1.host"
    events.touch()
    monkeypatch.setattr(Trainer, "log_dir", property(ask))
    monkeypatch.setattr(trainer, "fit", lambda *_, **__: None)
    fit(trainer, LightningModule(), LightningDataModule(), state=tmp_path / "resume" / NAME, resume=True)
    assert not events.exists(), "it has no state to go on from"


def test_more_patience_than_the_state_had_goes_on_after_an_early_stop(whole, tiny_folder, tmp_path):
    settings = {"epochs": 4, "learning_rate": 0.0}
    case = Case(base=tiny_folder, folder=tmp_path, patience=0, **settings)
    assert run_case(case) == 0
    assert len(metrics(tmp_path)["epochs"]) == 2
    assert run_case(replace(case, patience=2), resume=True) == 0
    assert len(metrics(tmp_path)["epochs"]) == len(metrics(whole(patience=2, **settings))["epochs"]) == 3


def test_another_learning_rate_than_the_state_had_is_taken(tiny_folder, tmp_path):
    case = Case(base=tiny_folder, folder=tmp_path, ends_after=3, log_every_n_steps=1, learning_rate=1e-2)
    assert run_case(case) == 143
    assert run_case(replace(case, ends_after=0, learning_rate=5e-3), resume=True) == 0
    rates = [rate for _, rate in curves(tmp_path)["train/learning_rate"]]
    assert rates[:5] == pytest.approx([1e-2 / 6, 2e-2 / 6, 3e-2 / 6, 2e-2 / 6, 2.5e-2 / 6])


@pytest.mark.parametrize("after", [pytest.param(3, marks=pytest.mark.slow), 4])
def test_a_limit_of_steps_is_one_over_all_processes(whole, tiny_folder, tmp_path, after):
    """Lightning takes counters of the last epoch for those of the next when steps are limited."""
    case = Case(base=tiny_folder, folder=tmp_path, max_steps=6, ends_after=after)
    check_equal(interrupted(case, expected=143), whole(max_steps=6))
    assert metrics(tmp_path)["epochs"][-1]["step"] == 6


def test_a_fit_that_is_killed_before_its_first_state_starts_again(whole, tiny_folder, tmp_path):
    case = Case(base=tiny_folder, folder=tmp_path, how="batch", ends_after=2)
    check_equal(interrupted(case, expected=-9), whole())


def test_a_second_signal_leaves_the_state_as_it_was(whole, tiny_folder, tmp_path):
    case = Case(base=tiny_folder, folder=tmp_path, ends_after=3, signals=2, every_n_train_steps=2)
    assert run_case(case) == 143
    assert state_of(tmp_path)["global_step"] == 2
    assert "stopped by a second signal: nothing more is saved" in said(tmp_path)


def test_a_signal_is_answered_in_one_line(tiny_folder, tmp_path):
    assert run_case(Case(base=tiny_folder, folder=tmp_path, how="SIGINT", ends_after=3)) == 130
    assert state_of(tmp_path)["global_step"] == 3
    lines = [line for line in said(tmp_path).splitlines() if "stopped" in line]
    assert lines == ["stopped by SIGINT after step 3 of stage 1-short: state saved; go on with --resume"]
    assert "Traceback" not in said(tmp_path)


@pytest.mark.parametrize("whom", [{"to": 1}, pytest.param({"to_parent": True}, id="parent")], ids=["rank 1", None])
def test_ranks_stop_after_the_same_batch_whoever_received_the_signal(whole, tiny_folder, tmp_path, whom):
    """After step 1 of ranks that agree every second step."""
    case = Case(base=tiny_folder, folder=tmp_path, ranks=2, ends_after=1, **whom)
    assert run_case(case) == 143, said(tmp_path)
    assert state_of(tmp_path)["global_step"] == 2
    assert "Traceback" not in said(tmp_path)


def test_slurm_gets_its_job_back_in_the_queue(tiny_folder, tmp_path, monkeypatch):
    script = tmp_path / "bin" / "scontrol"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nls {tmp_path}/fit/resume >> {tmp_path}/asked\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    case = Case(base=tiny_folder, folder=tmp_path / "fit", how="SIGUSR1", ends_after=3)
    assert run_case(case) == 143, said(tmp_path / "fit")
    assert (tmp_path / "asked").read_text().split() == ["requeue", "4711", NAME], "asked once, when the state was there"
    assert "stopped by SIGUSR1 after step 3" in said(tmp_path / "fit")
