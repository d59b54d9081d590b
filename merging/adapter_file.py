"""adapter_model.safetensors of a PEFT LoRA adapter: factors by module, and tensors that were trained whole.

Keys (PEFT 0.21): ``base_model.model.MODULE`` followed by ``lora_A.weight``, ``lora_B.weight``, ``lora_B.bias``
(lora_bias), ``lora_magnitude_vector`` (DoRA), ``base_layer.bias`` or ``bias`` (trained biases); everything of a
module that was saved whole has the names of the base.

Dimensions: out and in, the sides of the weight; r, the rank.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float32
from torch import Tensor

from merging.adapter_config import CONFIG, WEIGHTS, AdapterConfig, read_adapter_config
from merging.sources import StoredTensor, as_matrix
from storage.tensor_file import read_header

PREFIX = "base_model.model."
FACTOR = re.compile(r"(?P<module>.+)\.(?P<part>lora_[AB]\.weight|lora_B\.bias|lora_magnitude_vector(?:\.weight)?)")
WRAPPED_ORDERS = (("w1", "w2"),)
"""Parameters of one module in the order in which their class defines them, and PEFT wraps them: Nomic's experts."""
COPY = re.compile(r"\.modules_to_save\.[^.]+(?=\.)")
"""PEFT's wrapper around a module saved whole; trained biases of such a module are saved under this name too."""


@dataclass(frozen=True)
class Factors:
    """The update of one module's weight W: W + scale * B A; with magnitudes m, the rows of that at lengths m."""

    a: Float32[Tensor, "r in"]
    b: Float32[Tensor, "out r"]
    scale: float
    bias: Float32[Tensor, " out"] | None = None
    """Added to the layer's bias, times ``scale`` (lora_bias)."""
    magnitude: Float32[Tensor, " out"] | None = None

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        return self.b.shape[0], self.a.shape[1]

    def is_same(self, other: Factors) -> bool:
        """Say whether both are the same bit for bit."""
        pairs = ((self.bias, other.bias), (self.magnitude, other.magnitude), (self.a, other.a), (self.b, other.b))
        alike = all(x is y or (x is not None and y is not None and torch.equal(x, y)) for x, y in pairs)
        return alike and self.scale == other.scale


@dataclass(frozen=True)
class Adapter:
    """An adapter without its base.  Names are those of the model in memory, without PEFT's prefix."""

    path: str
    """As the user gave it."""
    config: AdapterConfig
    factors: dict[str, Factors]
    """By module, in file order; as stored in the base where it stores weights as (in, out). Target parameters by their name."""
    whole: dict[str, StoredTensor] = field(default_factory=dict)
    """Tensors that take the place of the base's, by name."""

    @property
    def file(self) -> Path:
        return Path(self.path) / WEIGHTS

    def weight_of(self, module: str) -> str:
        """Name of the tensor that the factors of ``module`` change."""
        return module if module in self.config.parameters else f"{module}.weight"

    @property
    def tensor_names(self) -> list[str]:
        """Names of the base's tensors that the adapter changes or needs."""
        biases = [f"{module}.bias" for module, factors in self.factors.items() if factors.bias is not None]
        return list(dict.fromkeys([*(self.weight_of(module) for module in self.factors), *biases, *self.whole]))


def read_adapter(path: str | os.PathLike[str]) -> Adapter:
    """Read the adapter in the folder ``path``; its factors come in float32.

    Raises:
        ValueError: the folder holds other weights too, a key is none that the configuration allows, a factor is
            missing or not finite, its rank is not the one of the configuration, or nothing would change.  The
            message names the file and the key.
    """
    folder = Path(path)
    config = read_adapter_config(folder)
    file = _weights_file(folder)
    parts: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, StoredTensor] = {}
    for key, entry in read_header(file).entries.items():
        name = key.removeprefix(PREFIX).replace(".base_layer.bias", ".bias")
        stored = StoredTensor(file, entry)
        found = FACTOR.fullmatch(name)
        if found is not None and key.startswith(PREFIX):
            parts.setdefault(found["module"], {})[found["part"].replace("vector.weight", "vector")] = _loaded(stored)
        elif ".original_module." not in name:  # the base's own copy of a module that was saved whole
            _add_whole(whole, COPY.sub("", name), stored, config)
    names = _parameter_names(config, file)
    if lost := [name for key, name in names.items() if key not in parts]:
        raise ValueError(
            f"{file}: expected factors of {lost[0]}, which target_parameters of {CONFIG} names, got none; "
            "save the adapter with full names of its parameters"
        )
    factors = {names.get(key, key): _factors(names.get(key, key), pair, config, file) for key, pair in parts.items()}
    if not factors and not whole:
        raise ValueError(f"{file}: expected LoRA factors, got no tensor; train the adapter first")
    if not whole and not any(_has_effect(each) for each in factors.values()):
        raise ValueError(f"{file}: expected an adapter that changes its base, got one without effect; train it first")
    return Adapter(os.fspath(path), config, factors, whole)


def _parameter_names(config: AdapterConfig, file: Path) -> dict[str, str]:
    """{module in the file: name of the target parameter}; PEFT wraps a module once a parameter, the first one innermost."""
    owned: dict[str, list[str]] = {}
    for name in config.parameters:
        owned.setdefault(name.rpartition(".")[0], []).append(name.rpartition(".")[2])
    for owner, own in owned.items():
        if len(own) > 1 and tuple(own) not in WRAPPED_ORDERS:
            raise ValueError(
                f"{file}: expected one target parameter of {owner}, or w1 and w2, got {', '.join(own)}, whose order in the "
                "file is not known; merge it with PEFT"
            )
    return {
        owner + ".base_layer" * (len(own) - 1 - place): f"{owner}.{name}".removeprefix(".")
        for owner, own in owned.items()
        for place, name in enumerate(own)
    }


def _weights_file(folder: Path) -> Path:
    others = sorted(file for file in folder.rglob("*.safetensors") if file != folder / WEIGHTS)
    if others:
        raise ValueError(
            f"{others[0]}: expected {WEIGHTS} only in an adapter folder, got this too, which would be lost; "
            "merge adapters that were trained with everything else frozen (Dense modules: --lora.dense freeze)"
        )
    if not (folder / WEIGHTS).is_file() and (folder / "adapter_model.bin").is_file():
        raise ValueError(
            f"{folder / 'adapter_model.bin'}: expected safetensors, got a pickle, which can run code when opened; "
            "load the adapter once and save it with save_pretrained"
        )
    return folder / WEIGHTS


def _loaded(stored: StoredTensor) -> Tensor:
    key, rows = stored.entry.name, as_matrix(stored.shape)[0]
    if not stored.dtype.is_floating_point:
        raise ValueError(
            f"{stored.file}: tensor {key}: expected a floating-point dtype, got {stored.dtype}; save it so"
        )
    values = stored.rows(0, rows).reshape(stored.shape).to(torch.float32)
    if bad := int((~values.isfinite()).sum()):
        raise ValueError(f"{stored.file}: tensor {key}: expected finite values, got {bad} that are not; train it again")
    return values


def _add_whole(whole: dict[str, StoredTensor], name: str, stored: StoredTensor, config: AdapterConfig) -> None:
    key = stored.entry.name
    if not key.startswith(PREFIX) or ".lora_" in key or not config.keeps_whole(name):
        raise ValueError(
            f"{stored.file}: expected keys {PREFIX}*.lora_A|B.weight, or those that bias and modules_to_save of {CONFIG} "
            f"allow, got {key}; not supported"
        )
    if name in whole and whole[name].dtype == stored.dtype and not torch.equal(_loaded(whole[name]), _loaded(stored)):
        raise ValueError(f"{stored.file}: expected one value of {name}, got two that differ; save the adapter again")
    whole.setdefault(name, stored)


def _factors(module: str, parts: Mapping[str, Tensor], config: AdapterConfig, file: Path) -> Factors:
    """Put the parts of one module together, after comparing them with each other and the configuration."""
    a, b = parts.get("lora_A.weight"), parts.get("lora_B.weight")
    if a is None or b is None:
        raise ValueError(f"{file}: {module}: expected lora_A and lora_B, got {', '.join(parts)}; fetch the file again")
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise ValueError(
            f"{file}: {module}: expected factors A [r, in] and B [out, r], got {list(a.shape)} and {list(b.shape)}; "
            "only linear layers are supported"
        )
    bias, magnitude = parts.get("lora_B.bias"), parts.get("lora_magnitude_vector")
    for name, vector, wanted in (("lora_bias", bias, config.lora_bias), ("use_dora", magnitude, config.dora)):
        if (vector is not None) != wanted:
            got = "one without such a tensor" if vector is None else "such a tensor"
            raise ValueError(
                f"{file}: {module}: expected what {name} = {wanted} says, got {got}; fetch both files again"
            )
        if vector is not None and vector.numel() != b.shape[0]:
            raise ValueError(
                f"{file}: {module}: expected {b.shape[0]} numbers for {name}, got {list(vector.shape)}; fetch it again"
            )
    scale = config.scale(module, a.shape[0])
    if config.transposed:
        a, b = b.mT.contiguous(), a.mT.contiguous()
    flat = [None if vector is None else vector.reshape(-1) for vector in (bias, magnitude)]
    return Factors(a, b, scale, *flat)


def _has_effect(factors: Factors) -> bool:
    if factors.bias is not None and bool(factors.bias.any()):
        return True
    return bool(factors.a.any()) and bool(factors.b.any())
