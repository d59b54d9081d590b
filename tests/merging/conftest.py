"""Tiny model folders for the tests of merging."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from storage.tensor_file import write_tensors

MakeModel = Callable[..., Path]


def perturbed(tensors: Mapping[str, Tensor], size: float, seed: int) -> dict[str, Tensor]:
    """Return the tensors with noise of relative ``size``; integer ones as they are."""
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            result[name] = tensor.clone()
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        scale = float(tensor.float().square().mean().sqrt())
        result[name] = (tensor.float() + size * scale * noise).to(tensor.dtype)
    return result


@pytest.fixture
def tiny() -> dict[str, Tensor]:
    """Weights of a made-up model: matrices, a vector, a zero vector, a scalar and an integer buffer."""
    generator = torch.Generator().manual_seed(0)
    return {
        "embeddings.weight": torch.randn(11, 6, generator=generator),
        "layers.0.proj.weight": torch.randn(6, 6, generator=generator),
        "layers.0.proj.bias": torch.zeros(6),
        "layers.1.proj.weight": torch.randn(6, 6, generator=generator),
        "norm.weight": torch.rand(6, generator=generator) + 0.5,
        "scale": torch.tensor(1.25),
        "position_ids": torch.arange(8).reshape(1, 8),
    }


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """Write a folder: ``modules`` maps the folder of a module ("" is the root) to its tensors."""

    def make(
        name: str, tensors: Mapping[str, Tensor], *, dense: Mapping[str, Tensor] | None = None, sub: str = ""
    ) -> Path:
        folder = tmp_path / name
        (folder / sub).mkdir(parents=True)
        write_tensors(folder / sub / "model.safetensors", tensors, {"format": "pt"})
        (folder / sub / "config.json").write_text('{"model_type": "made-up"}')
        (folder / "tokenizer.json").write_text(json.dumps({"of": name}))
        (folder / "README.md").write_text("about the old model")
        if dense is not None or sub:
            modules = [{"idx": 0, "name": "0", "path": sub, "type": "Transformer"}]
            modules += [{"idx": 1, "name": "1", "path": "1_Pooling", "type": "Pooling"}]
            if dense is not None:
                modules += [{"idx": 2, "name": "2", "path": "2_Dense", "type": "Dense"}]
                (folder / "2_Dense").mkdir()
                write_tensors(folder / "2_Dense" / "model.safetensors", dense)
                (folder / "2_Dense" / "config.json").write_text("{}")
            (folder / "modules.json").write_text(json.dumps(modules))
        return folder

    return make


@pytest.fixture
def make_sharded(tmp_path: Path) -> MakeModel:
    """Write a transformers folder in shards, one for each element of ``shards``."""

    def make(name: str, shards: Sequence[Mapping[str, Tensor]], weight_map: Mapping[str, Any] | None = None) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        mapping = {}
        for index, shard in enumerate(shards):
            file = f"model-{index + 1:05}-of-{len(shards):05}.safetensors"
            write_tensors(folder / file, shard)
            mapping |= dict.fromkeys(shard, file)
        index_text = json.dumps({"metadata": {}, "weight_map": mapping if weight_map is None else weight_map})
        (folder / "model.safetensors.index.json").write_text(index_text)
        return folder

    return make


@pytest.fixture
def make_adapter(tmp_path: Path) -> MakeModel:
    """Write a PEFT LoRA adapter folder for modules of width 6 by default, with any field of its configuration."""

    def make(
        name: str,
        base: Path | str | None,
        *,
        modules: Sequence[str] = ("layers.0.proj", "layers.1.proj"),
        rank: int = 2,
        seed: int = 1,
        shape: tuple[int, int] = (6, 6),
        tensors: Mapping[str, Tensor] | None = None,
        **config: Any,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        generator = torch.Generator().manual_seed(seed)
        factors: dict[str, Tensor] = {}
        for module in modules:
            factors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, shape[1], generator=generator)
            factors[f"base_model.model.{module}.lora_B.weight"] = 0.1 * torch.randn(shape[0], rank, generator=generator)
        write_tensors(folder / "adapter_model.safetensors", factors if tensors is None else tensors)
        plain = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "bias": "none"}
        plain |= {"base_model_name_or_path": None if base is None else str(base)}
        (folder / "adapter_config.json").write_text(json.dumps(plain | config))
        return folder

    return make
