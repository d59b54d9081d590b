"""ResumeState: what ``--resume`` needs besides what Lightning keeps: the metrics so far, and how long the event files were."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.loggers import TensorBoardLogger

KEY = "resume"
EVENT_FILES = "events.out.tfevents.[0-9]*"
"""Files that a stage logs into while it trains; a report's has a name of its own."""


class ResumeState(Callback):
    """Saves the state of a fit where it is told to, and puts back what Lightning forgets.

    Lightning keeps the loops' progress, the weights, the optimiser, the schedule and the callbacks. Here: the last value of each
    metric, whether the run was about to stop, and the length of every event file, so that what was logged after the state was
    saved can be cut off (`cut_events`).

    Args:
        path: Folder of the state.
        every_n_train_steps: Steps between two states within an epoch. 0: none.
    """

    def __init__(self, path: Path, *, every_n_train_steps: int = 0) -> None:
        self.path, self.every_n_train_steps = path, every_n_train_steps
        self._saved: Mapping[str, Any] | None = None

    def is_due(self, step: int) -> bool:
        """Whether the state is saved after ``step`` steps, in the middle of an epoch.

        Example:
            >>> [step for step in range(1, 8) if ResumeState(Path("state"), every_n_train_steps=3).is_due(step)]
            [3, 6]
        """
        return self.every_n_train_steps > 0 and step % self.every_n_train_steps == 0

    def save(self, trainer: Trainer) -> None:
        """Save everything, on all ranks together; the first writes."""
        # everything, not the weights alone: the optimiser, the schedule and the callbacks go on too
        trainer.save_checkpoint(self.path, weights_only=False)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning leaves out."""
        checkpoint[KEY] = {
            "metrics": {name: value.clone() for name, value in trainer.callback_metrics.items()},
            "should_stop": trainer.should_stop,
            "events": _event_lengths(trainer),
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember it until Lightning has cleared its own."""
        self._saved = checkpoint.get(KEY)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put it back."""
        if self._saved is None:
            return
        trainer.callback_metrics.update(self._saved["metrics"])
        # an early stop that was decided in the epoch that the state was saved after, unless there is more patience now
        goes_on = any(isinstance(each, Patience) and each.goes_on for each in getattr(trainer, "callbacks", []))
        trainer.should_stop = self._saved["should_stop"] and not goes_on
        self._saved = None


class Patience(EarlyStopping):
    """Lightning's early stopping with the patience of now, where a resumed run may be allowed another than its state has."""

    goes_on = False
    """Whether the state is of a stage that had stopped, and would not have with the patience of now."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of a resume within the stage."""
        super().load_state_dict(state_dict | {"patience": self.patience})
        exhausted = self.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED
        self.goes_on = exhausted and self.wait_count < self.patience
        if self.goes_on:
            self.stopped_epoch, self.stopping_reason, self.stopping_reason_message = (
                0,
                EarlyStoppingReason.NOT_STOPPED,
                None,
            )


def _event_lengths(trainer: Trainer) -> dict[str, int]:
    """Bytes of every event file of the stage, with all that was logged so far in them."""
    if not trainer.is_global_zero or not isinstance(trainer.logger, TensorBoardLogger):
        return {}
    trainer.logger.experiment.flush()
    return {file.name: file.stat().st_size for file in sorted(Path(trainer.logger.log_dir).glob(EVENT_FILES))}


def cut_events(folder: Path, lengths: Mapping[str, int]) -> None:
    """Cut the event files of a stage to what they were when its state was saved, so that no step is read twice.

    Args:
        folder: Of the stage's events.
        lengths: Name -> bytes; a file that is not named is removed.
    """
    for file in folder.glob(EVENT_FILES):
        if file.name not in lengths:
            file.unlink()
        elif file.stat().st_size > lengths[file.name]:
            with file.open("r+b") as stream:
                stream.truncate(lengths[file.name])
