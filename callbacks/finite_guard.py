"""FiniteGuard: a run stops at the first loss that is not finite, before it reaches the weights."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class NonFiniteLoss(RuntimeError):  # noqa: N818  (the field says "non-finite loss")
    """The loss is NaN or infinite; the message names the epoch and the step."""


class FiniteGuard(Callback):
    """Raises before the backward pass of a loss that is not finite; the loss is global, so all ranks stop together."""

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Check the loss."""
        if not torch.isfinite(loss):
            raise NonFiniteLoss(
                f"loss: expected a finite number, got {loss.item()} in epoch {trainer.current_epoch}, step {trainer.global_step}; "
                "the last saved epoch is kept; lower --stages.N.learning-rate or raise --temperature"
            )
