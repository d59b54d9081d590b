"""The adapter folder of a merge: tensors under PEFT's names, and a configuration under which PEFT gives exactly them."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merging.adapter_config import CONFIG, WEIGHTS
from merging.adapter_file import PREFIX, Adapter, Factors
from merging.lora_merge import Merged
from storage.atomic import refuse_existing
from storage.json_file import write_json
from storage.tensor_file import write_tensors

TARGETS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
"""Fields that say which modules are adapted."""

STARTS = ("init_lora_weights", "eva_config", "corda_config", "loftq_config", "lora_ga_config")
"""Fields that say how training began; a merge did not begin."""


def write_adapter(folder: Path, adapters: Sequence[Adapter], merged: Sequence[Merged], base: str | None) -> None:
    """Write tensors and configuration of a merged adapter; ``base`` is what it will name as its base."""
    write_tensors(folder / WEIGHTS, _tensors(adapters, merged), {"format": "pt"})
    write_json(folder / CONFIG, _config(adapters, merged, base))


def copy_adapter(folder: Path, adapter: Adapter) -> None:
    """Write an adapter as it is, byte for byte."""
    shutil.copyfile(adapter.file, folder / WEIGHTS)
    shutil.copyfile(adapter.config.file, folder / CONFIG)


def check_output(output: Path, overwrite: bool, folders: Sequence[Path], size: int) -> None:
    """Refuse a name that is taken or that lies in an input, and a disk with less than ``size`` bytes free."""
    refuse_existing(output, overwrite=overwrite)
    target = output.resolve()
    for folder in folders:
        place = folder.resolve()
        if target == place or target in place.parents or place in target.parents:
            raise ValueError(f"--output {output}: expected a place apart from the inputs, got {folder}; choose another")
    if target == Path.cwd() or target in Path.cwd().parents:
        raise ValueError(f"--output {output}: expected a folder of its own, got the current one; choose another")
    place = target
    while not place.exists():
        place = place.parent
    if (free := shutil.disk_usage(place).free) < size:
        raise ValueError(f"--output {output}: expected {size} bytes free on its disk, got {free}; make room")


def _tensors(adapters: Sequence[Adapter], merged: Sequence[Merged]) -> dict[str, Tensor]:
    transposed = adapters[0].config.transposed
    tensors: dict[str, Tensor] = {}
    biases = {each.look.part.key: each.values for each in merged if each.look.part.kind == "lora_bias"}
    for each in merged:
        part, factors = each.look.part, each.factors
        if factors is not None:
            a, b = (factors.b.mT, factors.a.mT) if transposed else (factors.a, factors.b)
            tensors[f"{PREFIX}{part.key}.lora_A.weight"] = a.contiguous()
            tensors[f"{PREFIX}{part.key}.lora_B.weight"] = b.contiguous()
            if factors.magnitude is not None:
                tensors[f"{PREFIX}{part.key}.lora_magnitude_vector"] = factors.magnitude
            if biases:
                found = biases.get(part.key)
                tensors[f"{PREFIX}{part.key}.lora_B.bias"] = torch.zeros(len(b)) if found is None else found
        elif part.kind == "whole":
            assert each.values is not None
            tensors[PREFIX + _saved_name(part.key, adapters)] = each.values
    return tensors


def _saved_name(name: str, adapters: Sequence[Adapter]) -> str:
    """Return PEFT's name of a tensor trained whole: the bias of an adapted module lies in the layer that was wrapped."""
    module, _, last = name.rpartition(".")
    wrapped = last == "bias" and any(module in adapter.factors for adapter in adapters)
    return f"{module}.base_layer.bias" if wrapped else name


def _config(adapters: Sequence[Adapter], merged: Sequence[Merged], base: str | None) -> dict[str, Any]:
    """Return the first adapter's configuration with everything that describes the weights in accord with the merge.

    All updates are at scale 1, that is alpha = r; modules whose rank is not the most common one are patterns.
    """
    first = adapters[0].config.fields
    factors = {each.look.part.key: each.factors for each in merged if each.factors is not None}
    ranks = {module: each.rank for module, each in factors.items()}
    usual = Counter(ranks.values()).most_common(1)[0][0] if ranks else int(adapters[0].config.rank)
    pattern = {
        re.escape(module): ranks[module]
        for module in sorted(ranks, key=lambda name: (-len(name), name))
        if ranks[module] != usual
    }
    return {
        **{key: value for key, value in first.items() if key not in STARTS},
        "base_model_name_or_path": base,
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "use_rslora": False,
        "use_dora": any(each.magnitude is not None for each in factors.values()),
        "lora_bias": any(each.look.part.kind == "lora_bias" for each in merged),
        "bias": _bias(adapters),
        "modules_to_save": sorted({name for adapter in adapters for name in adapter.config.whole}) or None,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "inference_mode": True,
        **_targets(adapters, factors),
    }


def _bias(adapters: Sequence[Adapter]) -> str:
    said = {adapter.config.bias for adapter in adapters}
    return next(value for value in ("all", "lora_only", "none") if value in said)


def _targets(adapters: Sequence[Adapter], factors: Mapping[str, Factors]) -> dict[str, Any]:
    """Keep what the adapters say where they all say the same of the same modules; else name every module in full."""
    told = [{key: _unordered(adapter.config.fields.get(key)) for key in TARGETS} for adapter in adapters]
    if all(one == told[0] for one in told) and all(adapter.factors.keys() == factors.keys() for adapter in adapters):
        return {}
    return {**dict.fromkeys(TARGETS), "target_modules": sorted(factors)}


def _unordered(value: Any) -> Any:
    return sorted(value, key=str) if isinstance(value, list) else value
