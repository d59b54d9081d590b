"""LastGood: a copy of what a training step changes, to go back to."""

import copy
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor


@dataclass(frozen=True)
class LastGood:
    """Trainable weights, optimiser and schedule at the end of a step; adapter-sized where an adapter is trained."""

    weights: dict[str, Tensor]
    """As the module's ``state_dict`` gives them."""
    optimizers: list[dict[str, Any]]
    """State of each optimiser."""
    schedules: list[dict[str, Any]]
    """State of each schedule of the learning rate."""

    @classmethod
    def capture(cls, trainer: Trainer, module: LightningModule) -> "LastGood":
        """Copy; all ranks together."""
        return cls(
            weights={name: tensor.detach().clone() for name, tensor in module.state_dict().items()},
            optimizers=[copy.deepcopy(trainer.strategy.optimizer_state(each)) for each in trainer.optimizers],
            schedules=[copy.deepcopy(each.scheduler.state_dict()) for each in trainer.lr_scheduler_configs],
        )

    def restore(self, trainer: Trainer, module: LightningModule) -> None:
        """Put everything back; all ranks together. The copy stays as it is and can be put back again."""
        module.load_state_dict(self.weights)
        # an optimiser goes on with the tensors that it is given, and would write into the copy
        trainer.strategy.load_optimizer_state_dict({"optimizer_states": copy.deepcopy(self.optimizers)})
        for config, state in zip(trainer.lr_scheduler_configs, self.schedules, strict=True):
            config.scheduler.load_state_dict(copy.deepcopy(state))

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint: the fields by name."""
        return {"weights": self.weights, "optimizers": self.optimizers, "schedules": self.schedules}
