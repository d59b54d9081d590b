"""StageCheckpoint: a stage ends with its best weights, saved as a folder of their own."""

import math
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class StageCheckpoint(Callback):
    """Remembers the trainable weights of the best epoch, and at the end puts them back and saves them.

    Args:
        save: Called on rank 0, when the module holds the best epoch's weights, with ``best_epoch`` and ``epochs``: a mapping of
            metrics an epoch, ``epoch`` (from 1) and ``step`` among them.
        monitor: Logged metric to maximise; an epoch without it (or with nan) is never best, and without any best epoch the last
            weights are saved.
    """

    def __init__(self, save: Callable[[dict[str, Any]], None], *, monitor: str | None) -> None:
        self.save, self.monitor = save, monitor
        self.best_score, self.best_epoch = float("-inf"), 0
        self.epochs: list[dict[str, float]] = []
        self.best_weights: dict[str, Tensor] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep this epoch's weights if it is the best so far."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.epochs.append({"epoch": trainer.current_epoch + 1, "step": trainer.global_step} | metrics)
        score = metrics.get(self.monitor, math.nan) if self.monitor else math.nan
        if score > self.best_score or self.best_score == float("-inf"):
            self.best_score = self.best_score if math.isnan(score) else score
            self.best_epoch = trainer.current_epoch + 1
            self.best_weights = {name: tensor.detach().cpu().clone() for name, tensor in pl_module.state_dict().items()}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the best weights back on every rank; save them on the first."""
        if self.best_weights:
            with torch.no_grad():
                pl_module.load_state_dict(self.best_weights)
        if trainer.is_global_zero:
            self.save({"best_epoch": self.best_epoch, "epochs": self.epochs})

    def state_dict(self) -> dict[str, Any]:
        """For a resume within the stage."""
        return {"score": self.best_score, "epoch": self.best_epoch, "epochs": self.epochs, "weights": self.best_weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of a resume within the stage."""
        self.best_score, self.best_epoch = state_dict["score"], state_dict["epoch"]
        self.epochs, self.best_weights = state_dict["epochs"], state_dict["weights"]
