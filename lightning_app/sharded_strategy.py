"""ShardedStrategy: FSDP2 in Lightning, with checkpoints that know nothing of how many ranks there were."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lightning_app.launching import RankLauncher
from models.sharding import own_rows, whole_tensor


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy, for modules that spread their own weights in ``configure_model``.

    Weights and the optimiser's state are gathered whole on every rank, one after the other, and the first rank writes them
    with the Trainer's CheckpointIO, as other strategies do; Lightning's own writes pickles. Every rank reads them and takes
    its rows. So a checkpoint of one process can be gone on with by several, and the other way round.

    Example:
        >>> ShardedStrategy(data_parallel_size=2, tensor_parallel_size=1).lightning_restore_optimizer
        True
    """

    def _configure_launcher(self) -> None:
        super()._configure_launcher()
        if isinstance(self._launcher, _SubprocessScriptLauncher):
            assert self.cluster_environment is not None
            self._launcher = RankLauncher(self.cluster_environment, self.num_processes, self.num_nodes)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether Lightning hands the optimiser's state over after the weights."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What the module says; it gathers."""
        return Strategy.lightning_module_state_dict(self)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Let the module take its rows."""
        Strategy.load_model_state_dict(self, checkpoint, strict=strict)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write on the first rank."""
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options=storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read on every rank."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only=weights_only)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimiser's state with whole tensors."""
        inner = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state = inner.state_dict()
        # The dictionaries of the slots are the optimiser's own, so they are made anew.
        slots = {
            number: {name: whole_tensor(each).cpu() if isinstance(each, Tensor) else each for name, each in own.items()}
            for number, own in state["state"].items()
        }
        return {**state, "state": slots}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give each optimiser its rows of what `optimizer_state` gathered."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            spread = {
                number: {name: _like(weights[int(number)], each) for name, each in slots.items()}
                for number, slots in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": spread})


def _like(weight: Tensor, value: Any) -> Any:
    """The rows of a whole tensor that this rank has of the weight; what has another shape (a count of steps) as it is."""
    if not (isinstance(weight, DTensor) and isinstance(value, Tensor) and value.shape == weight.shape):
        return value
    rows = value[own_rows(weight)].to(weight.device)
    return DTensor.from_local(
        rows, weight.device_mesh, weight.placements, run_check=False, shape=weight.shape, stride=weight.stride()
    )
