"""few_bits: which layers of a model bitsandbytes packs, and the bytes that they take then; nothing is packed here."""

from __future__ import annotations

from typing import Literal

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from models.quantised import BLOCK, Quantisation

SUPERBLOCK = 256
"""Scales that share one scale of their own, where they are quantised again."""
CODE, BYTE_CODE = 16 * 4, 256 * 4
"""The float32 values that 4 bits stand for, and those that the 8 bits of a scale stand for."""


def packed_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The linear layers that transformers gives to bitsandbytes, by name; heads and tied weights are left out.

    Args:
        model: of transformers, on any device, the meta device too.

    Example:
        >>> from transformers import LlamaConfig, LlamaModel
        >>> config = LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=1)
        >>> len(packed_layers(LlamaModel(config)))
        7
    """
    kept = HfQuantizer.get_modules_to_not_convert(model, None, getattr(model, "_keep_in_fp32_modules", None))
    return {
        name: each
        for name, each in model.named_modules()
        if (type(each) is nn.Linear or isinstance(each, Conv1D)) and should_convert_module(name, kept)
    }


def packed_bytes(layer: nn.Module, kind: Literal["nf4", "fp4", "int8"]) -> int:
    """Bytes of a layer's weight in few bits, its scales and their tables; the bias stays as it is and is not counted.

    4 bits: half a byte a number, and a float32 scale every 64; nf4 quantises the scales again, to a byte each with a float32
    scale every 256 and one mean. int8: a byte a number, and a float32 scale a row.

    Reference: Dettmers et al. (2023), QLoRA, arXiv:2305.14314, section 3 (0.127 bits a number of scales with nf4).

    Example:
        >>> packed_bytes(nn.Linear(64, 64), "int8"), packed_bytes(nn.Linear(64, 64), "fp4")
        (4352, 2368)
    """
    weight = _weight(layer)
    if kind == "int8":
        return weight.numel() + 4 * weight.shape[0]
    scales = -(-weight.numel() // BLOCK)
    packed = -(-weight.numel() // 2) + CODE
    if kind == "fp4":
        return packed + 4 * scales
    return packed + scales + 4 * -(-scales // SUPERBLOCK) + BYTE_CODE + 4


def weight_bytes(module: nn.Module, packed: dict[str, nn.Module], kind: Quantisation) -> int:
    """Bytes of a module's weights and buffers with the layers of ``packed`` in few bits, others as they are."""
    total = sum(each.nbytes for each in (*module.parameters(), *module.buffers()))
    if kind == "none":
        return total
    inside = {id(each) for each in module.modules()}
    return total + sum(
        packed_bytes(layer, kind) - _weight(layer).nbytes for layer in packed.values() if id(layer) in inside
    )


def _weight(layer: nn.Module) -> nn.Parameter:
    weight = layer.weight
    assert isinstance(weight, nn.Parameter), type(layer)
    return weight
