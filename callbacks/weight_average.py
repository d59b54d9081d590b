"""WeightAverage: the average of the trained weights over the steps; what an epoch is measured by and what is kept of it."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from models.sharding import load_wholes, local_part, whole_tensor


class WeightAverage(Callback):
    """Averages the trainable weights in float32 and lends the average to the callbacks that measure and keep an epoch.

    Only what is trained is copied, never the frozen base. Training goes on with its own weights, bit for bit: the average is put
    in their place at the end of an epoch and `Returned`, which stands behind the callback that keeps the epoch, takes it out.

    With w_1, w_2, ... the weights after each step:

    - ``ema``: the exponential moving average with its bias taken out, as Adam has it for its moments:
      a_t = sum_i (1 - decay) decay^(t-i) w_i / (1 - decay^t), so a_1 = w_1 and the weights before the first step count nothing.
    - ``swa``: the plain mean over the steps of the second half of the stage; until then there is no average, and an epoch is
      measured and kept with the weights themselves.

    Under ``ShardedStrategy`` each rank averages its own rows. Under DDP every rank has the same average.

    Args:
        kind: ``ema`` or ``swa``.
        total_steps: Steps of the stage if it does not end early; of swa.
        decay: Of ema, in [0, 1).

    References:
        Kingma and Ba 2015, Adam, section 3 (the bias), https://arxiv.org/abs/1412.6980;
        Izmailov et al. 2018, Averaging Weights Leads to Wider Optima and Better Generalization,
        https://arxiv.org/abs/1803.05407

    Example:
        >>> average = WeightAverage("ema", total_steps=10, decay=0.5)
        >>> [round(average.share(count), 3) for count in (1, 2, 3)]
        [1.0, 0.667, 0.571]
    """

    def __init__(self, kind: Literal["ema", "swa"], *, total_steps: int, decay: float = 0.98) -> None:
        self.kind, self.total_steps, self.decay = kind, total_steps, decay
        self.count, self.step = 0, 0
        self.averages: dict[str, Tensor] = {}
        self._own: dict[str, Tensor] = {}
        self._read: dict[str, Tensor] = {}

    def share(self, count: int) -> float:
        """How much of the ``count``-th weights goes into the average."""
        return 1 / count if self.kind == "swa" else (1 - self.decay) / (1 - self.decay**count)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over what a resume has read, where the weights are now."""
        if not self._read:
            self.step = trainer.global_step
            return
        self.averages = {name: _like(weight) for name, weight in _trained(pl_module)}
        load_wholes(self.averages, self._read)
        self._read = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the weights of this step, if there was one."""
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        if self.kind == "swa" and self.step <= self.total_steps // 2:
            return
        self.count += 1
        if not self.averages:
            self.averages = {name: _like(weight) for name, weight in _trained(pl_module)}
        share = self.share(self.count)
        with torch.no_grad():
            for name, weight in _trained(pl_module):
                average = local_part(self.averages[name])
                average.lerp_(local_part(weight).to(average.dtype), share)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in the weights' place; this callback stands before those that measure."""
        with torch.no_grad():
            for name, weight in _trained(pl_module) if self.averages else ():
                own = local_part(weight)
                self._own[name] = own.clone()
                own.copy_(local_part(self.averages[name]))

    def give_back(self, pl_module: LightningModule) -> None:
        """Put the weights that are trained back."""
        with torch.no_grad():
            for name, weight in _trained(pl_module) if self._own else ():
                local_part(weight).copy_(self._own[name])
        self._own = {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """A state that is saved for a resume has the weights that are trained."""
        self.give_back(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """For a resume within the stage; whole tensors, so all ranks together."""
        averages = {name: whole_tensor(tensor) for name, tensor in self.averages.items()} or self._read
        return {"count": self.count, "step": self.step, "averages": averages}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of a resume within the stage."""
        self.count, self.step, self._read = state_dict["count"], state_dict["step"], dict(state_dict["averages"])


class Returned(Callback):
    """Ends what `WeightAverage` began at the end of an epoch; it stands behind the callback that keeps the epoch's weights."""

    def __init__(self, average: WeightAverage) -> None:
        self.average = average

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights that are trained back."""
        self.average.give_back(pl_module)


def _trained(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, weight) for name, weight in module.named_parameters() if weight.requires_grad)


def _like(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight, dtype=torch.float32, requires_grad=False)
