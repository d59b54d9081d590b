"""build_trainer: the Lightning Trainer of one stage."""

import logging
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from callbacks.finite_guard import FiniteGuard
from callbacks.resume_state import Patience, ResumeState
from callbacks.step_log import StepLog
from callbacks.throughput import Throughput
from lightning_app.checkpoint_io import SafetensorsIO
from lightning_app.config import StageConfig, TrainConfig
from lightning_app.launching import RankLauncher
from lightning_app.lost_rank import RollCall
from lightning_app.resumable_loops import make_resumable
from lightning_app.sharded_strategy import ShardedStrategy

MONITOR = "selection/silhouette_true"
"""What chooses the end and the best epoch of a stage; of the suite that no report prints."""
SCORE = "selection/score"
"""The same with a retention floor, see `callbacks.stage_checkpoint`."""


def early_stopping(stage: StageConfig) -> Patience:
    """Ends a stage when its selection silhouette stops rising; with a floor, only an epoch that reaches it counts as better."""
    monitor = SCORE if stage.retention_floor > 0 else MONITOR
    stopping = Patience(monitor, mode="max", patience=stage.patience, check_on_train_epoch_end=True)
    if stage.retention_floor > 0:
        stopping.best_score = torch.tensor(-2.0)  # no silhouette is less, every score below the floor is
    return stopping


class ProgressBar(RichProgressBar):
    """Lightning's, without the logger's version number: the stage's name stands above the bar.

    Args:
        every: Steps between looks at the loss; each waits for the device.
    """

    def __init__(self, every: int = 1) -> None:
        super().__init__(refresh_rate=every)
        self._loss: float | None = None

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The loss and, from the second epoch on, the silhouettes."""
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        if trainer.global_step % int(self.refresh_rate) == 0 and "train/loss" in trainer.callback_metrics:
            self._loss = float(trainer.callback_metrics["train/loss"])
        return shown if self._loss is None else {"train/loss": self._loss} | shown


def build_trainer(
    config: TrainConfig,
    stage: StageConfig,
    *,
    folder: Path,
    name: str,
    callbacks: Sequence[Callback],
    selects: bool,
    texts: Sequence[str] = (),
) -> Trainer:
    """The Trainer of one stage of the run in ``folder``.

    ``selects``: whether there is a selection suite to stop on. ``texts``: what the stage trains on, for the guard's message.
    """
    # hardware found, tips, "max_epochs reached": the run says what matters itself
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    # the module's hook is meant; the data module has none
    warnings.filterwarnings("ignore", message=".*overridden `on_before_batch_transfer` in `LightningModule`")
    # frozen blocks below --adapt-top have no dropout, on purpose
    warnings.filterwarnings("ignore", message="Found .* in eval mode at the start of training")
    # values are logged every so many steps of the stage, however short its epochs are
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    # blocks below the adapted ones have no dropout on purpose
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
    stopping = [early_stopping(stage)] if selects else []
    every = config.log_every_n_steps
    throughput = Throughput(every)
    # the guard first: what comes after it measures and saves nothing that is not finite
    watching = [
        FiniteGuard(config.non_finite, every=every, texts=texts, state=folder / "resume" / name),
        throughput,
        StepLog(every),
    ]
    where = folder / "resume" / name
    kept = f"the last state in {where} is kept"
    state = ResumeState(where, every_n_train_steps=config.every_n_train_steps)
    trainer = Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=choose_strategy(config),
        precision=config.precision,  # type: ignore[arg-type]
        max_epochs=stage.epochs,
        max_steps=config.max_steps,
        gradient_clip_val=config.gradient_clip_val,
        callbacks=[RollCall(name, kept=kept), *watching, ProgressBar(every), *callbacks, *stopping, state],
        logger=TensorBoardLogger(folder, name="tensorboard", version=name),
        plugins=[SafetensorsIO()],
        # not None, which would leave what another Trainer has set
        deterministic=config.deterministic,
        log_every_n_steps=every,
        profiler=throughput.clock,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
    )
    make_resumable(trainer, state, name=f"stage {name}", every=every)
    return trainer


class WatchedDDP(DDPStrategy):
    """DDP whose ranks on this machine are started by a launcher that says which one is gone."""

    def _configure_launcher(self) -> None:
        super()._configure_launcher()
        if isinstance(self._launcher, _SubprocessScriptLauncher):
            assert self.cluster_environment is not None
            self._launcher = RankLauncher(self.cluster_environment, self.num_processes, self.num_nodes)


def choose_strategy(config: TrainConfig) -> str | Strategy:
    """How the ranks of a run are started and what they share; on one device there is nothing to spread."""
    ranks, timeout = config.devices * config.num_nodes, timedelta(seconds=config.timeout)
    if ranks == 1:
        return "auto"
    if config.strategy == "fsdp":
        return ShardedStrategy(data_parallel_size=ranks, tensor_parallel_size=1, timeout=timeout)
    return WatchedDDP(start_method="fork" if config.strategy == "ddp_fork" else "popen", timeout=timeout)
