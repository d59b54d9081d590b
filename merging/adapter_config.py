"""adapter_config.json of a PEFT LoRA adapter, read and checked.

It says how the tensors beside it are to be understood; a field that would change what they mean and is not known
here is refused by name.  Reference: Hu et al. 2021, LoRA, arXiv:2106.09685; rsLoRA: Kalajdzievski 2023,
arXiv:2312.03732; DoRA: Liu et al. 2024, arXiv:2402.09353.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from storage.json_file import read_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

Bias = Literal["none", "all", "lora_only"]

UNSUPPORTED = (
    *("layer_replication", "trainable_token_indices", "use_qalora", "alora_invocation_tokens"),
    *("megatron_config", "use_bdlora", "arrow_config", "kasa_config", "velora_config", "monteclora_config"),
)
"""Fields that change what an adapter means; any set value is refused."""

FAITHFUL_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base as it is (PiSSA, OLoRA, LoftQ and CorDA do not)."""


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter's configuration says, as far as its weights are concerned."""

    file: Path
    base: str | None
    """``base_model_name_or_path``: a folder or a name on a hub."""
    rank: Any
    alpha: Any
    rank_pattern: Mapping[str, Any]
    alpha_pattern: Mapping[str, Any]
    rslora: bool
    """The update is scaled by alpha / sqrt(r) in place of alpha / r."""
    dora: bool
    """Each row of the weight has a magnitude of its own, beside the update of its direction."""
    bias: Bias
    """Which of the base's own biases were trained; the adapter holds them whole."""
    lora_bias: bool
    """The update is affine: lora_B has a bias, which is added to the layer's."""
    transposed: bool
    """``fan_in_fan_out``: the base stores its weights as (in, out), as GPT-2 does."""
    whole: tuple[str, ...]
    """``modules_to_save``: endings of the names of modules that were trained whole."""
    parameters: tuple[str, ...]
    """``target_parameters``: full names of adapted tensors that are no module's ``weight``, such as those of experts."""
    fields: Mapping[str, Any]
    """The file as it is."""

    def scale(self, module: str, rank: int) -> float:
        """Return the factor of B A: alpha / r, or alpha / sqrt(r) for rsLoRA, with PEFT's rule for patterns.

        Raises:
            ValueError: ``rank``, that of the stored factors, is not the rank that the configuration gives.
        """
        alpha = _by_pattern(self.alpha_pattern, module, self.alpha)
        stated = _by_pattern(self.rank_pattern, module, self.rank)
        if rank < 1 or stated != rank or not isinstance(alpha, int | float):
            raise ValueError(
                f"{self.file}: {module}: expected rank {rank} as in {WEIGHTS}, got r = {stated}, alpha = {alpha}; "
                "fetch both files again"
            )
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def keeps_whole(self, name: str) -> bool:
        """Say whether tensor ``name`` of the base may stand in the adapter: a trained bias, or of a module saved whole."""
        if self.bias != "none" and name.rpartition(".")[2] == "bias":
            return True
        parts = name.split(".")
        paths = [".".join(parts[:count]) for count in range(1, len(parts))]
        return any(path.endswith(ending) for path in paths for ending in self.whole)


def read_adapter_config(folder: str | os.PathLike[str]) -> AdapterConfig:
    """Read the configuration of the adapter in ``folder``.

    Raises:
        ValueError: it is no LoRA adapter, or of a kind that is not supported; the message names the field.
    """
    file = Path(folder) / CONFIG
    fields = read_json(file)
    if not isinstance(fields, dict) or fields.get("peft_type") != "LORA":
        got = fields.get("peft_type") if isinstance(fields, dict) else fields
        raise ValueError(f"{file}: expected peft_type LORA, got {got!r}; other adapters are not supported")
    _refuse_unsupported(fields, file)
    named = fields.get("base_model_name_or_path")
    return AdapterConfig(
        file=file,
        base=named if isinstance(named, str) and named else None,
        rank=fields.get("r"),
        alpha=fields.get("lora_alpha"),
        rank_pattern=fields.get("rank_pattern") or {},
        alpha_pattern=fields.get("alpha_pattern") or {},
        rslora=bool(fields.get("use_rslora")),
        dora=bool(fields.get("use_dora")),
        bias=fields.get("bias", "none"),
        lora_bias=bool(fields.get("lora_bias")),
        transposed=bool(fields.get("fan_in_fan_out")),
        whole=tuple(fields.get("modules_to_save") or ()),
        parameters=tuple(fields.get("target_parameters") or ()),
        fields=fields,
    )


def _refuse_unsupported(fields: Mapping[str, Any], file: Path) -> None:
    if (bias := fields.get("bias", "none")) not in get_args(Bias):
        raise ValueError(f"{file}: expected bias to be one of {', '.join(get_args(Bias))}, got {bias!r}; correct it")
    if (start := fields.get("init_lora_weights", True)) not in FAITHFUL_STARTS:
        raise ValueError(
            f"{file}: expected an adapter of an unchanged base, got init_lora_weights {start!r}, which changes the base "
            "itself; save the adapter with PEFT's path_initial_model_for_weight_conversion, which turns it into plain LoRA"
        )
    if fields.get("fan_in_fan_out") and fields.get("use_dora"):
        raise ValueError(f"{file}: expected DoRA without fan_in_fan_out, got both; not supported, merge with PEFT")
    for field in UNSUPPORTED:
        if fields.get(field):
            raise ValueError(f"{file}: expected LoRA or DoRA, got {field} = {fields[field]!r}; not supported")
    for field in ("rank_pattern", "alpha_pattern"):
        if not isinstance(fields.get(field) or {}, dict):
            raise ValueError(f"{file}: expected an object {field}, got {fields[field]!r}; correct it")
    for field in ("modules_to_save", "target_parameters"):
        names = fields.get(field) or []
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise ValueError(f"{file}: expected a list of names in {field}, got {names!r}; correct it")


def _by_pattern(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default
