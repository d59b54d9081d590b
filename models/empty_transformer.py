"""A transformer inside sentence-transformers' Transformer module with shapes and buffers, and without weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sentence_transformers.sentence_transformer.modules import Transformer
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from models.nomic_config import NomicMoeConfig, read_nomic_config
from models.nomic_moe import NomicMoeModel
from models.nomic_type import is_nomic_moe
from models.weight_files import WeightFiles
from storage.json_file import read_json


class EmptyTransformer(Transformer):
    """A Transformer module whose weights are one number each that is read as the whole weight; its buffers are real.

    What is put on it has real weights, as an adapter has. `on_meta` puts its own on the meta device.

    It differs in how it is loaded and in nothing else; see `as_loaded`.
    """

    def _load_config(self, model_name_or_path: str, backend: str, config_kwargs: dict[str, Any]) -> tuple[Any, bool]:
        file = Path(model_name_or_path) / "config.json"
        if is_nomic_moe(read_json(file)):
            return read_nomic_config(file), False
        return super()._load_config(model_name_or_path, backend, config_kwargs)

    def _load_model(self, model_name_or_path: str, *given: Any, **model_kwargs: Any) -> PreTrainedModel:
        config = next(each for each in (*given, *model_kwargs.values()) if hasattr(each, "model_type"))
        asked = model_kwargs.get("dtype")
        dtype = asked if isinstance(asked, torch.dtype) else config.dtype
        dtype = dtype or WeightFiles(Path(model_name_or_path)).dtype()
        attention = {name: each for name, each in model_kwargs.items() if name == "attn_implementation"}
        with torch.device("meta"):
            if isinstance(config, NomicMoeConfig):
                model: PreTrainedModel = NomicMoeModel(config).to(dtype)  # type: ignore[arg-type]
                config.dtype = dtype
            else:
                model = AutoModel.from_config(config, dtype=dtype, **attention)  # type: ignore[no-untyped-call]
        compute_buffers(model)
        model._apply(_one_number)  # type: ignore[no-untyped-call]
        model.eval()  # type: ignore[no-untyped-call]
        return model


def as_loaded(module: EmptyTransformer) -> None:
    """Make it a plain Transformer module, as any other that was loaded."""
    module.__class__ = Transformer


def compute_buffers(model: PreTrainedModel) -> None:
    """Make the buffers of a model on the meta device on the CPU: what no file holds, the model computes itself."""
    for module in model.modules():
        empty = {name: each for name, each in module._buffers.items() if each is not None and each.is_meta}
        module._buffers.update({name: torch.zeros_like(each, device="cpu") for name, each in empty.items()})
        if empty:
            model._init_weights(module)  # type: ignore[no-untyped-call]


def on_meta(model: nn.Module) -> None:
    """Put the weights that are one number on the meta device; other weights stay."""
    model._apply(lambda each: each.to("meta") if _is_one_number(each) else each)  # type: ignore[no-untyped-call]


def _one_number(tensor: Tensor) -> Tensor:
    return torch.zeros(1, dtype=tensor.dtype).expand(tensor.shape) if tensor.is_meta else tensor


def _is_one_number(tensor: Tensor) -> bool:
    return tensor.numel() > 1 and tensor.untyped_storage().nbytes() == tensor.element_size()
