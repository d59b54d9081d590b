"""StageCheckpoint: a stage ends with its best weights, saved as a folder of their own."""

import math
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

BELOW = -4.0
"""Added to the retention of an epoch below the floor: less than every silhouette, and more where more is kept."""


def floored_score(separation: float, retention: float, floor: float) -> float:
    """One number to rank epochs by: those that keep enough by their separation, above all others by what they keep.

    Args:
        separation: In [-1, 1], such as a silhouette.
        retention: In [-1, 1], such as a debiased CKA.
        floor: Least retention that is enough; 0: any is, undefined ones too.

    Returns:
        ``separation`` if ``retention`` reaches the floor, else ``retention - 4``; nan where that number is undefined.

    Example:
        >>> [floored_score(0.5, kept, 0.9) for kept in (0.95, 0.75)]
        [0.5, -3.25]
    """
    return separation if floor == 0 or retention >= floor else BELOW + retention


class StageCheckpoint(Callback):
    """Remembers the trainable weights of the best epoch, and at the end puts them back and saves them.

    With a floor, the best epoch has the largest monitored metric among those whose ``retention`` reaches it; where none does, the
    one that keeps most. What epochs are ranked by is then logged as ``score``, for a callback that stops the stage.

    Args:
        save: Called on rank 0, when the module holds the best epoch's weights, with ``best_epoch`` and ``epochs``: a mapping of
            metrics an epoch, ``epoch`` (from 1) and ``step`` among them. With a floor ``retention_floor_reached`` is there too.
        monitor: Logged metric to maximise; an epoch without it (or with nan) is never best, and without any best epoch the last
            weights are saved.
        retention: Logged metric that must reach ``floor``.
        floor: See `floored_score`.
        score: Name under which the score is logged.
    """

    def __init__(
        self,
        save: Callable[[dict[str, Any]], None],
        *,
        monitor: str | None,
        retention: str = "selection/cka",
        floor: float = 0.0,
        score: str = "selection/score",
    ) -> None:
        self.save, self.monitor = save, monitor
        self.retention, self.floor, self.score = retention, floor, score
        self.best_score, self.best_epoch = float("-inf"), 0
        self.epochs: list[dict[str, float]] = []
        self.best_weights: dict[str, Tensor] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep this epoch's weights if it is the best so far."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.epochs.append({"epoch": trainer.current_epoch + 1, "step": trainer.global_step} | metrics)
        score = metrics.get(self.monitor, math.nan) if self.monitor else math.nan
        if self.floor > 0:
            score = floored_score(score, metrics.get(self.retention, math.nan), self.floor)
            pl_module.log(self.score, score)
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
            self.save({"best_epoch": self.best_epoch, "epochs": self.epochs} | self._reached())

    def _reached(self) -> dict[str, bool]:
        """Whether the epoch that is kept reaches the floor."""
        if self.floor == 0:
            return {}
        kept = [epoch.get(self.retention, math.nan) for epoch in self.epochs if epoch["epoch"] == self.best_epoch]
        return {"retention_floor_reached": any(value >= self.floor for value in kept)}

    def state_dict(self) -> dict[str, Any]:
        """For a resume within the stage."""
        return {"score": self.best_score, "epoch": self.best_epoch, "epochs": self.epochs, "weights": self.best_weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of a resume within the stage."""
        self.best_score, self.best_epoch = state_dict["score"], state_dict["epoch"]
        self.epochs, self.best_weights = state_dict["epochs"], state_dict["weights"]
