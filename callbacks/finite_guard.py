"""FiniteGuard: a loss or gradient that is not finite ends a run, costs one step, or takes it back to its last good weights."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from callbacks.gathering import gathered_rows
from callbacks.last_good import LastGood
from callbacks.non_finite import NonFiniteLoss, named_items, non_finite_name

MOST_SKIPPED, MOST_ROLLBACKS = 10, 3
"""Steps skipped in a row, and rollbacks in a stage, that a run survives."""
NEXT = "lower --stages.N.learning-rate or raise --temperature"

Policy = Literal["stop", "skip", "rollback"]


class Step(NamedTuple):
    """One step that is still to be checked; tensors are on the device."""

    epoch: int
    step: int
    loss: Tensor
    norm: Tensor
    targets: Tensor


class FiniteGuard(Callback):
    """Watches the loss and the norm of the gradient of every step; a save is always preceded by a check.

    - ``stop``: checks every ``every`` steps, without waiting for the device in between, and ends the run with the first step
      that is not finite. What was trained after it is never saved.
    - ``skip``: checks every step, for which the host waits for the device. Weights and optimiser stay as they were, as if the
      step had no gradient; the schedule goes on. More than ten in a row end the run.
    - ``rollback``: checks every step as well. Weights, optimiser and schedule go back to where they were at most ``every`` steps
      before, and training goes on with the next batch. The fourth in a stage ends the run.

    Ranks decide together, whichever of them computed the bad number. Put it before callbacks that measure or save, as it checks
    at the end of the epoch too. The module has to have ``gradient_norm()``, and a batch ``targets``, (b, 3): label, place, role.

    Args:
        policy: One of the three.
        every: Steps between checks (``stop``) or copies of the weights (``rollback``), and between logged counts.
        texts: What the module is trained on, by place, for the message.
        state: Where the state for a resume is kept, for the message.

    Raises:
        NonFiniteLoss: out of ``Trainer.fit``, on every rank.

    Example:
        >>> FiniteGuard("skip", every=5).state_dict()["skipped"]
        0
    """

    def __init__(
        self, policy: Policy = "stop", *, every: int = 1, texts: Sequence[str] = (), state: Path | None = None
    ) -> None:
        self.policy, self.every, self.texts, self.state = policy, every, texts, state
        self.skipped = self.skipped_in_a_row = self.rollbacks = 0
        self._good: LastGood | None = None
        self._unchecked: list[Step] = []
        self._loss = self._targets = torch.zeros(())
        self._goes_back = False
        self._saved: tuple[int, int] | None = None
        self._failure: NonFiniteLoss | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the state that the run goes on from."""
        if trainer.global_step:
            self._saved = trainer.current_epoch, trainer.global_step
        if self.policy == "rollback" and self._good is None:
            self._good = LastGood.capture(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep what tells which texts are in the batch."""
        self._targets = batch.targets

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Keep the loss."""
        self._loss = loss.detach()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Keep the norm; with ``skip`` and ``rollback`` check, and leave the optimiser nothing to do in a bad step."""
        norm: Tensor = pl_module.gradient_norm()  # type: ignore[operator]
        self._unchecked.append(Step(trainer.current_epoch, trainer.global_step, self._loss, norm, self._targets))
        if self.policy == "stop":
            return
        bad = self._first_bad(trainer)
        if bad is None:
            self.skipped_in_a_row = 0
            return
        if self.policy == "skip":
            self.skipped += 1
            self.skipped_in_a_row += 1
            if self.skipped_in_a_row > MOST_SKIPPED:
                self._fail(pl_module, *bad, f", the {self.skipped_in_a_row}th bad step in a row")
        else:
            self.rollbacks += 1
            self._goes_back = True
            if self.rollbacks > MOST_ROLLBACKS:
                self._fail(pl_module, *bad, f" after {MOST_ROLLBACKS} rollbacks")
        # weights without a gradient are no concern of an optimiser, while a gradient of zero still moves them by momentum
        optimizer.zero_grad(set_to_none=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Go back if the step was bad; every so often check, copy and log."""
        if self._goes_back:
            assert self._good is not None
            self._good.restore(trainer, pl_module)
            self._goes_back = False
        if trainer.global_step % self.every:
            return
        self._check(trainer, pl_module)
        if self.policy == "rollback":
            self._copy_or_go_back(trainer, pl_module)
        count = {"skip": ("train/skipped_steps", self.skipped), "rollback": ("train/rollbacks", self.rollbacks)}
        if self.policy in count and trainer.logger is not None:
            trainer.logger.log_metrics(dict([count[self.policy]]), step=trainer.global_step - 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check before anything is measured."""
        self._check(trainer, pl_module)
        self._check_tensors(trainer, {"weights": pl_module.state_dict()})

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check before anything is written."""
        if self._failure is not None:
            raise self._failure
        self._check(trainer, pl_module)
        optimizers = {str(number): state for number, state in enumerate(checkpoint.get("optimizer_states", ()))}
        self._check_tensors(trainer, {"weights": checkpoint["state_dict"], "optimiser": optimizers})
        self._saved = trainer.current_epoch, trainer.global_step

    def state_dict(self) -> dict[str, Any]:
        """Counts, and with ``rollback`` the copy to go back to. Steps that are still to be checked are checked by then."""
        return {
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "rollbacks": self.rollbacks,
            "good": None if self._good is None else self._good.to_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of a resume within the stage."""
        self.skipped, self.skipped_in_a_row = state_dict["skipped"], state_dict["skipped_in_a_row"]
        self.rollbacks, good = state_dict["rollbacks"], state_dict["good"]
        self._good = LastGood(**good) if good is not None and self.policy == "rollback" else None

    def _first_bad(self, trainer: Trainer) -> tuple[str, Step] | None:
        """The first unchecked step that is not finite on some rank, and what of it; all ranks together."""
        steps, self._unchecked = self._unchecked, []
        if not steps:
            return None
        values = torch.stack([torch.stack((each.loss.float(), each.norm.float())) for each in steps])
        flags = trainer.strategy.reduce((~values.isfinite()).float(), reduce_op="sum").tolist()
        for step, (loss, norm) in zip(steps, flags, strict=True):
            if loss or norm:
                return ("loss" if loss else "gradient norm"), step
        return None

    def _copy_or_go_back(self, trainer: Trainer, module: LightningModule) -> None:
        """A finite gradient can make weights that are not: those are no good copy."""
        copied = LastGood.capture(trainer, module)
        if self.rollbacks < MOST_ROLLBACKS and not self._all_finite(trainer, {"weights": copied.weights}):
            assert self._good is not None
            self.rollbacks += 1
            self._good.restore(trainer, module)
        else:
            self._check_tensors(trainer, {"weights": copied.weights})
            self._good = copied

    def _all_finite(self, trainer: Trainer, tensors: dict[str, Any]) -> bool:
        return trainer.strategy.reduce_boolean_decision(non_finite_name(tensors) is None, all=True)

    def _check(self, trainer: Trainer, module: LightningModule) -> None:
        bad = self._first_bad(trainer)
        if bad is not None:
            self._fail(module, *bad)

    def _fail(self, module: LightningModule, what: str, step: Step, when: str = "") -> None:
        value = (step.loss if what == "loss" else step.norm).item()
        got = f"{value:g}, not finite on another rank," if math.isfinite(value) else str(value)
        targets = step.targets if module.trainer.world_size == 1 else gathered_rows(module, step.targets)
        items = [(place, label) for label, place, *_ in targets.tolist()]
        self._raise(
            f"{what}: expected a finite number, got {got} in epoch {step.epoch}, step {step.step}{when}",
            f"; the batch (place/label): {named_items(items, self.texts)}",
        )

    def _check_tensors(self, trainer: Trainer, tensors: dict[str, Any]) -> None:
        if not self._all_finite(trainer, tensors):
            where = f"epoch {trainer.current_epoch}, step {trainer.global_step}"
            self._raise(
                f"{non_finite_name(tensors) or 'weights of another rank'}: expected finite numbers, got nan or infinity in {where}"
            )

    def _raise(self, message: str, batch: str = "") -> None:
        kept = "no state of this stage was saved yet"
        if self._saved is not None:
            epoch, step = self._saved
            kept = f"the state of epoch {epoch}, step {step} is kept" + (f" in {self.state}" if self.state else "")
        self._failure = NonFiniteLoss(f"{message}; {kept}; {NEXT}{batch}")
        raise self._failure
