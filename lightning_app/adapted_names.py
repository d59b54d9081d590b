"""adapted_names: which linear layers and stacks of experts a run adapts."""

from lightning_app.config import LoraConfig
from models.backbone import Backbone


def adapted_names(lora: LoraConfig, row: Backbone | None) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Names of linear layers (None: all in the blocks) and of expert weights: the row's, unless ``--lora.targets`` names some.

    Example:
        >>> adapted_names(LoraConfig(), None), adapted_names(LoraConfig(targets=("q_proj",)), None)
        ((None, ()), (('q_proj',), ()))
    """
    if row is None:
        return lora.targets or None, ()
    if not lora.targets:
        return row.lora_targets or None, row.expert_parameters
    experts = tuple(name for name in row.expert_parameters if {name, name.rpartition(".")[2]} & set(lora.targets))
    named = {part for name in experts for part in (name, name.rpartition(".")[2])}
    return tuple(target for target in lora.targets if target not in named), experts
