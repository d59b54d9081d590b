"""Our side of the training benchmark: the module, the loader and the Trainer of a run, without what comes after the steps."""

import contextlib
import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from sentence_transformers import SentenceTransformer

from benchmarks.training_case import LABELS
from data.datamodule import LabelledDataModule
from data.training_texts import TrainingTexts
from lightning_app.config import StageConfig, TrainConfig
from lightning_app.module import ContrastiveEmbedder
from lightning_app.prefix import autocast_of, with_states
from lightning_app.trainer import build_trainer
from models.prefix_cache import PrefixCache
from models.prefix_pass import describe_prefix, lowest_trained_block
from models.prefix_store import FileStore


@dataclass(frozen=True, kw_only=True)
class Steps:
    """What one run left."""

    ends: list[float]
    """The clock at the end of each step, in seconds."""
    losses: list[float]
    seconds_a_kept_text: float = 0.0
    """What it took to compute the states below the trained layers of a text; 0 where none are kept."""

    def seconds(self, *, warm_up: int) -> list[float]:
        """Of each step after the first ``warm_up``, from the end of the step before: reading and logging are in it."""
        return [after - before for before, after in zip(self.ends[warm_up - 1 :], self.ends[warm_up:], strict=False)]


class OurClock(Callback):
    """The time at the end of each step, and its loss."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[Any] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the clock when the device is done."""
        wait()
        self.ends.append(time.perf_counter())
        self.losses.append(outputs["loss"])


def wait() -> None:
    """Until a GPU, where there is one, is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def train_ours(
    embedder: SentenceTransformer,
    data: TrainingTexts,
    folder: Path,
    *,
    config: TrainConfig,
    per_class: int,
    steps: int,
) -> Steps:
    """Train ``steps`` steps on the batches that the seed gives; ``embedder`` has its adapter."""
    stage = StageConfig(name="benchmark", epochs=1, steps_per_epoch=steps)
    module = ContrastiveEmbedder(
        embedder,
        learning_rate=stage.learning_rate,
        total_steps=steps,
        temperature=config.temperature,
        seed=config.seed,
        batching=config.batching,
        token_budget=config.token_budget,
    )
    clock = OurClock()
    module.tokenise(data.texts)
    cache, seconds = _filled_cache(module, data, folder, config=config)
    collate = with_states(module.collate, cache, autocast=autocast_of(config))
    loader = LabelledDataModule(
        data, classes=len(LABELS), per_class=per_class, batches=steps, seed=config.seed, collate=collate
    )
    # the progress bar's lines are not those of the benchmark
    with contextlib.redirect_stdout(io.StringIO()), cache.installed() if cache else contextlib.nullcontext():
        trainer = build_trainer(config, stage, folder=folder, name=stage.name, callbacks=[clock], selects=False)
        trainer.fit(module, datamodule=loader)
    losses = [float(loss) for loss in clock.losses]
    return Steps(ends=clock.ends, losses=losses, seconds_a_kept_text=seconds)


def _filled_cache(
    module: ContrastiveEmbedder, data: TrainingTexts, folder: Path, *, config: TrainConfig
) -> tuple[PrefixCache | None, float]:
    """The states below the lowest trained block of every text, in files; and the seconds that a text took."""
    layer = lowest_trained_block(module.embedder)
    if layer == 0:
        return None, 0.0
    folder.mkdir(parents=True, exist_ok=True)
    store = FileStore(folder / "prefix", describe_prefix(module.embedder, layer))
    cache = PrefixCache(module.embedder, layer, store)
    rows = [module.rows.row(text) for text in data.texts]
    begin = time.perf_counter()
    cache.fill(rows, autocast=autocast_of(config))
    return cache, (time.perf_counter() - begin) / max(1, len(store))
