"""PEFT LoRA adapters, folded into their base on the fly: W + scale * B A, a few rows at a time.

What cannot be folded exactly by that formula (DoRA, biases, modules saved whole, initialisations that change
the base) is refused by name.  Reference: Hu et al. 2021, LoRA, arXiv:2106.09685; rsLoRA: arXiv:2312.03732.

Dimensions: out and in, the sides of the weight; r, the rank.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from merging.sources import Checkpoint, TensorSource
from storage.json_file import read_json
from storage.tensor_file import read_tensors

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

UNSUPPORTED = (
    *("use_dora", "lora_bias", "modules_to_save", "layer_replication", "fan_in_fan_out", "target_parameters"),
    *("trainable_token_indices", "use_qalora", "alora_invocation_tokens", "megatron_config", "use_bdlora"),
    *("arrow_config", "kasa_config", "velora_config", "monteclora_config"),
)
"""Fields of adapter_config.json that change what an adapter means; any set value is refused."""

FAITHFUL_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base as it is (PiSSA, OLoRA, LoftQ and CorDA do not)."""

KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


@dataclass(frozen=True)
class FoldedTensor:
    """A stored weight with a low-rank update.  Its rows come in float64, so the update keeps its own precision."""

    weight: TensorSource
    a: Float32[Tensor, "r in"]
    b: Float32[Tensor, "out r"]
    scale: float
    where: str

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    def rows(self, start: int, stop: int) -> Float64[Tensor, "rows in"]:
        update = self.scale * (self.b[start:stop] @ self.a).to(torch.float64)
        return self.weight.rows(start, stop).to(torch.float64) + update

    def held(self) -> FoldedTensor:
        return replace(self, weight=self.weight.held())


def is_adapter(path: str | os.PathLike[str]) -> bool:
    """Say whether the folder is a PEFT adapter; a folder with both an adapter and whole weights is refused."""
    folder = Path(path)
    if not (folder / CONFIG).is_file():
        return False
    if (folder / "model.safetensors").exists() or (folder / "model.safetensors.index.json").exists():
        raise ValueError(f"{os.fspath(path)}: expected an adapter or a whole model, got both; remove one of them")
    return True


def base_of(path: str | os.PathLike[str]) -> str:
    """Return the local base folder that the adapter's own configuration names.

    Raises:
        ValueError: it names none, or no folder here (a hub id, say).
    """
    named = _read_config(Path(path)).get("base_model_name_or_path")
    if not isinstance(named, str) or not Path(named).is_dir():
        raise ValueError(
            f"{Path(path) / CONFIG}: expected base_model_name_or_path to be a local folder, got {named!r}; "
            "add --base with the folder of the base model"
        )
    return named


def open_adapter(path: str | os.PathLike[str], base: Checkpoint) -> Checkpoint:
    """Return ``base`` with the adapter at ``path`` folded in.

    Raises:
        ValueError: the adapter is of a kind that is not supported yet, a key matches no tensor of the base or
            does not fit it, or the adapter changes nothing; the message names the file and the key.
    """
    folder = Path(path)
    file = folder / WEIGHTS
    config = _read_config(folder)
    _refuse_unsupported(config, folder)
    pairs = _pairs(read_tensors(_weights_file(folder)), file)
    names = _match(pairs, base, file)
    folded: dict[str, TensorSource] = {}
    for module, (a, b) in pairs.items():
        weight = base.tensors[names[module]]
        if b.shape + a.shape != (weight.shape[0], a.shape[0], a.shape[0], weight.shape[-1]) or len(weight.shape) != 2:
            raise ValueError(
                f"{file}: {module}: expected factors for {list(weight.shape)}, got A {list(a.shape)} and "
                f"B {list(b.shape)}; give the base that the adapter was trained on as --base"
            )
        folded[names[module]] = FoldedTensor(weight, a, b, _scale(config, module, a.shape[0], folder), str(file))
    if not any(float(a.abs().max()) > 0 and float(b.abs().max()) > 0 for a, b in pairs.values()):
        raise ValueError(f"{file}: expected an adapter that changes its base, got one without effect; train it first")
    return Checkpoint(
        path=os.fspath(path),
        kind="adapter",
        folder=base.folder,
        tensors={name: folded.get(name, tensor) for name, tensor in base.tensors.items()},
        transformer=base.transformer,
        base=base,
    )


def _read_config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        got = config.get("peft_type") if isinstance(config, dict) else config
        raise ValueError(
            f"{folder / CONFIG}: expected peft_type LORA, got {got!r}; other adapters are not supported yet"
        )
    return config


def _weights_file(folder: Path) -> Path:
    others = sorted(file for file in folder.rglob("*.safetensors") if file != folder / WEIGHTS)
    if others:
        raise ValueError(f"{others[0]}: expected {WEIGHTS} only in an adapter folder, got this too; it would be lost")
    if not (folder / WEIGHTS).is_file() and (folder / "adapter_model.bin").is_file():
        raise ValueError(
            f"{folder / 'adapter_model.bin'}: expected safetensors, got a pickle, which can run code when opened; "
            "load the adapter once and save it with save_pretrained"
        )
    return folder / WEIGHTS


def _refuse_unsupported(config: Mapping[str, Any], folder: Path) -> None:
    if config.get("bias", "none") != "none":
        raise ValueError(f"{folder / CONFIG}: expected bias none, got {config['bias']!r}; not supported yet")
    if (start := config.get("init_lora_weights", True)) not in FAITHFUL_STARTS:
        raise ValueError(f"{folder / CONFIG}: init_lora_weights {start!r} changes the base itself; not supported yet")
    for field in UNSUPPORTED:
        if config.get(field):
            raise ValueError(
                f"{folder / CONFIG}: expected plain LoRA, got {field} = {config[field]!r}; not supported yet"
            )


def _pairs(tensors: Mapping[str, Tensor], file: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return (A, B) in float32 by module; every key must be one side of such a pair, and finite."""
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        found = KEY.fullmatch(key)
        if found is None or tensor.ndim != 2:
            raise ValueError(f"{file}: expected keys base_model.model.*.lora_A|B.weight, got {key}; not supported yet")
        if bad := int((~tensor.isfinite()).sum()):
            raise ValueError(f"{file}: tensor {key}: expected finite values, got {bad} that are not; train it again")
        sides.setdefault(found["module"], {})[found["side"]] = tensor.to(torch.float32)
    if not sides:
        raise ValueError(f"{file}: expected LoRA factors, got no tensor; train the adapter first")
    for module, pair in sides.items():
        if len(pair) < 2:
            raise ValueError(f"{file}: {module}: expected lora_A and lora_B, got one of them; fetch the file again")
    return {module: (pair["A"], pair["B"]) for module, pair in sides.items()}


def _match(modules: Mapping[str, Any], base: Checkpoint, file: Path) -> dict[str, str]:
    """Return the base's tensor name for each adapted module, under one change of prefix for all of them.

    Memory and disk may differ by a prefix such as ``model.``, which is dropped or added.  One rule must serve
    every key, so that a key cannot land on a tensor that merely ends alike.
    """
    inside = {name.removeprefix(base.transformer): name for name in base.tensors if name.startswith(base.transformer)}
    if base.transformer == "":
        inside = {name: full for name, full in inside.items() if "/" not in name}
    first = next(iter(modules)) + ".weight"
    rules = {("", "")}
    for name in inside:
        if name.endswith("." + first):
            rules.add(("", name.removesuffix(first)))
        elif first.endswith("." + name):
            rules.add((first.removesuffix(name), ""))
    best: dict[str, str] = {}
    serving: list[dict[str, str]] = []
    for drop, add in sorted(rules):
        targets = {m: add + f"{m}.weight".removeprefix(drop) for m in modules if m.startswith(drop)}
        matched = {module: inside[target] for module, target in targets.items() if target in inside}
        if len(matched) == len(modules):
            serving.append(matched)
        best = max(best, matched, key=len)
    if not serving:
        lost = next(module for module in modules if module not in best)
        raise ValueError(
            f"{file}: {lost} matches no tensor of the base {base.path}; "
            "give the base that the adapter was trained on as --base"
        )
    # Sorted, the rule that changes nothing comes first: names that match as they are need no other.
    as_is = all(f"{module}.weight" in inside for module in modules)
    if len(serving) > 1 and not as_is:
        raise ValueError(f"{file}: {next(iter(modules))} matches several tensors of {base.path}; not supported yet")
    return serving[0]


def _scale(config: Mapping[str, Any], module: str, rank: int, folder: Path) -> float:
    """alpha / r, or alpha / sqrt(r) for rsLoRA, with PEFT's rule for per-module patterns."""

    def of(pattern: str, default: str) -> Any:
        for key, value in (config.get(pattern) or {}).items():
            if re.match(rf"(.*\.)?({key})$", module):
                return value
        return config.get(default)

    alpha, r = of("alpha_pattern", "lora_alpha"), of("rank_pattern", "r")
    if rank < 1 or r != rank or not isinstance(alpha, int | float):
        raise ValueError(
            f"{folder / CONFIG}: {module}: expected rank {rank} as in {WEIGHTS}, got r = {r}, alpha = {alpha}"
        )
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
