"""StepLog: the learning rate in TensorBoard, every so many steps."""

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer


class StepLog(Callback):
    """Logs ``train/learning_rate``, that of the step itself, beside the module's ``train/loss`` and ``train/gradient_norm``.

    Straight to the logger: what only some steps know is kept out of ``callback_metrics``, which an epoch's metrics are made of,
    since after a resume it would be missing there.

    Args:
        every: Steps between points; the Trainer's ``log_every_n_steps``.
    """

    def __init__(self, every: int) -> None:
        self.every, self._rate = every, 0.0

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Read the rate before the schedule changes it."""
        self._rate = float(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Log."""
        if trainer.global_step % self.every == 0 and trainer.logger is not None:
            trainer.logger.log_metrics({"train/learning_rate": self._rate}, step=trainer.global_step - 1)
