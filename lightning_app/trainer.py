"""build_trainer: the Lightning Trainer of one stage."""

import logging
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import Strategy

from callbacks.finite_guard import FiniteGuard
from lightning_app.checkpoint_io import SafetensorsIO
from lightning_app.config import StageConfig, TrainConfig
from lightning_app.sharded_strategy import ShardedStrategy

MONITOR = "selection/silhouette_true"
"""What chooses the end and the best epoch of a stage; of the suite that no report prints."""


class EpochState(Callback):
    """Saves what ``--resume`` needs after every epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: object) -> None:
        """Save; Lightning lets rank 0 write."""
        # everything, not the weights alone: the optimiser, the schedule and the callbacks go on too
        trainer.save_checkpoint(self.path, weights_only=False)


class ProgressBar(RichProgressBar):
    """Lightning's, without the logger's version number: the stage's name stands above the bar."""

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The loss and, from the second epoch on, the silhouettes."""
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        return shown


def build_trainer(
    config: TrainConfig, stage: StageConfig, *, folder: Path, name: str, callbacks: Sequence[Callback], selects: bool
) -> Trainer:
    """The Trainer of one stage of the run in ``folder``. ``selects``: whether there is a selection suite to stop on."""
    # hardware found, tips, "max_epochs reached": the run says what matters itself
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    stopping = (
        [EarlyStopping(MONITOR, mode="max", patience=stage.patience, check_on_train_epoch_end=True)] if selects else []
    )
    strategy: str | Strategy = config.strategy
    if config.strategy == "fsdp":
        # On one device there is nothing to spread.
        strategy = (
            ShardedStrategy(data_parallel_size=config.devices, tensor_parallel_size=1) if config.devices > 1 else "auto"
        )
    elif config.strategy == "auto" and config.devices > 1:
        strategy = "ddp"
    return Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        strategy=strategy,
        precision=config.precision,  # type: ignore[arg-type]
        max_epochs=stage.epochs,
        max_steps=config.max_steps,
        gradient_clip_val=config.gradient_clip_val,
        callbacks=[FiniteGuard(), ProgressBar(), *callbacks, *stopping, EpochState(folder / "resume" / name)],
        logger=TensorBoardLogger(folder, name="tensorboard", version=name),
        plugins=[SafetensorsIO()],
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
    )
