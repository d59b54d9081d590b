"""A small fit in a process of its own, which a test can end at any batch, and what it leaves."""

import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.clustering_metrics import ClusteringMetrics
from callbacks.stage_checkpoint import StageCheckpoint
from data.datamodule import LabelledDataModule
from lightning_app.config import StageConfig, TrainConfig
from lightning_app.module import ContrastiveEmbedder
from lightning_app.resuming import fit
from lightning_app.stop_signal import SIGNALS, Stopped
from lightning_app.trainer import build_trainer
from models.embedder import load_embedder
from models.lora import add_lora
from storage.tensor_file import read_tensors, write_tensors
from tests.conftest import short_texts

BATCHES, NAME = 4, "1-short"
TIMED = ("throughput", "seconds", "memory", "per_second")
"""In names of values that depend on the clock or the machine."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One fit of two or more epochs of four batches, and how it is ended."""

    base: Path
    folder: Path
    dropout: float = 0.0
    seed: int = 0
    workers: int = 0
    ranks: int = 1
    epochs: int = 2
    patience: int = 9
    learning_rate: float = 1e-2
    max_steps: int = -1
    every_n_train_steps: int = 0
    log_every_n_steps: int = 2
    ends_after: int = 0
    """Global step at which it is ended; 0: never."""
    how: str = "SIGTERM"
    """A signal that ends it, or the hook at which SIGKILL does."""
    to: int = 0
    """The rank that receives it."""
    signals: int = 1
    """How many of them, in the same batch."""
    to_parent: bool = False
    """Whether the process that has forked the ranks receives it instead."""


class Ender(Callback):
    """Ends the fit at a given step."""

    def __init__(self, case: Case) -> None:
        self.case = case

    def _end(self, trainer: Any, hook: str) -> None:
        case = self.case
        if trainer.global_step != case.ends_after or trainer.global_rank != case.to:
            return
        if case.how == hook:
            os.killpg(0, signal.SIGKILL)
        if case.how.startswith("SIG") and hook == "batch":
            for _ in range(case.signals):
                os.kill(os.getppid() if case.to_parent else os.getpid(), getattr(signal, case.how))
            if case.to_parent:
                time.sleep(0.3)  # until the parent has told the ranks

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self._end(trainer, "batch")

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        self._end(trainer, "epoch")

    def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
        self._end(trainer, "next epoch")

    def on_train_end(self, trainer: Any, *_: Any) -> None:
        self._end(trainer, "end")


class Result(Callback):
    """Writes the optimiser's state and the last weights, before the best ones are put back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            (optimizer,) = trainer.optimizers
            slots = {
                f"{number}.{name}": value.clone()
                for number, own in optimizer.state_dict()["state"].items()
                for name, value in own.items()
            }
            (schedule,) = trainer.lr_scheduler_configs
            rate = {"rate": torch.tensor(schedule.scheduler.get_last_lr(), dtype=torch.float64)}
            weights = {name: value.clone() for name, value in pl_module.state_dict().items()}
            write_tensors(self.folder / "last.safetensors", slots | weights | rate)


def train_case(case: Case, *, resume: bool) -> None:
    """In this process."""
    torch.manual_seed(0)
    embedder = load_embedder(case.base)
    add_lora(embedder, r=2, alpha=4, dropout=case.dropout, targets=["q_proj", "v_proj"])
    module = ContrastiveEmbedder(
        embedder, learning_rate=case.learning_rate, total_steps=case.epochs * BATCHES, seed=case.seed
    )
    texts = short_texts()
    module.tokenise(texts.texts)
    config = TrainConfig(
        accelerator="cpu",
        devices=case.ranks,
        strategy="ddp_fork" if case.ranks > 1 else "auto",
        max_steps=case.max_steps,
        every_n_train_steps=case.every_n_train_steps,
        log_every_n_steps=case.log_every_n_steps,
        timeout=60.0,
    )
    stage = StageConfig(
        name="short", families=("six",), epochs=case.epochs, steps_per_epoch=BATCHES, patience=case.patience
    )

    def save(metrics: dict[str, Any]) -> None:
        write_tensors(case.folder / "kept.safetensors", {k: v.clone() for k, v in module.state_dict().items()})
        (case.folder / "metrics.json").write_text(json.dumps(metrics))

    callbacks = [
        Result(case.folder),
        Ender(case),
        ClusteringMetrics({"selection": texts}, seed=0),
        StageCheckpoint(save, monitor="selection/silhouette_true"),
    ]
    trainer = build_trainer(config, stage, folder=case.folder, name=NAME, callbacks=callbacks, selects=True)
    data = LabelledDataModule(
        texts,
        classes=4,
        per_class=4,
        batches=BATCHES,
        seed=case.seed,
        collate=module.collate,
        num_workers=case.workers,
    )
    embedder.train()
    with SIGNALS.handled("nothing"):
        fit(trainer, module, data, state=case.folder / "resume" / NAME, resume=resume)


def _process(case: Case, resume: bool) -> None:
    os.setsid()
    case.folder.mkdir(parents=True, exist_ok=True)
    log = os.open(case.folder / "stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1)
    try:
        train_case(case, resume=resume)
    except Stopped as stop:
        os._exit(int(str(stop.code)))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def run_case(case: Case, *, resume: bool = False) -> int:
    """The exit code of a process that trains it; negative for a signal."""
    process = multiprocessing.get_context("fork").Process(target=_process, args=(case, resume))
    process.start()
    process.join(120)
    if process.is_alive():
        os.killpg(process.pid or 0, signal.SIGKILL)
        raise AssertionError(f"still running: {said(case.folder)}")
    return int(process.exitcode or 0)


def interrupted(case: Case, *, expected: int) -> Path:
    """The folder of a fit that was ended and gone on with."""
    code = run_case(case)
    assert code == expected, f"exit code {code}: {said(case.folder)}"
    assert run_case(replace(case, ends_after=0), resume=True) == 0, said(case.folder)
    return case.folder


def said(folder: Path) -> str:
    """What it said on its way."""
    return (folder / "stderr").read_text()


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value) of everything in TensorBoard that is no matter of time."""
    read = EventAccumulator(str(folder / "tensorboard" / NAME), size_guidance={"scalars": 0}).Reload()
    # files of one second are read in the order of their writers' process numbers
    found = {tag: sorted((each.step, each.value) for each in read.Scalars(tag)) for tag in read.Tags()["scalars"]}
    return {tag: values for tag, values in found.items() if not any(word in tag for word in TIMED)}


def metrics(folder: Path) -> Any:
    """metrics.json, without what is a matter of time."""
    content = json.loads((folder / "metrics.json").read_text())
    content["epochs"] = [
        {name: value for name, value in epoch.items() if not any(word in name for word in TIMED)}
        for epoch in content["epochs"]
    ]
    return content


def check_equal(folder: Path, whole: Path) -> None:
    """All that a fit leaves is bit-equal to what an uninterrupted one leaves."""
    for name in ("last.safetensors", "kept.safetensors"):
        found, expected = read_tensors(folder / name), read_tensors(whole / name)
        assert found.keys() == expected.keys()
        different = [key for key in expected if not torch.equal(found[key], expected[key])]
        assert not different, f"{name}: {different[:3]}"
    assert metrics(folder) == metrics(whole)
    assert curves(folder) == curves(whole)
