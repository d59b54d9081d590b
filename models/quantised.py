"""A base in 4 or 8 bits by bitsandbytes, for QLoRA and for inference: how it is asked for, and what of it can be proved.

Dettmers et al. (2022), LLM.int8(), arXiv:2208.07339; Dettmers et al. (2023), QLoRA, arXiv:2305.14314.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig

Quantisation = Literal["none", "nf4", "fp4", "int8"]
BLOCK = 64
"""Weights that share one scale in 4 bits; a narrower layer has no whole block in a row."""


def bitsandbytes_config(
    kind: Literal["nf4", "fp4", "int8"], *, compute_dtype: torch.dtype = torch.bfloat16
) -> BitsAndBytesConfig:
    """What transformers is told to load a base in few bits; embeddings, norms and heads stay as they are.

    Args:
        kind: nf4 (with its scales quantised again, as in QLoRA), fp4 or int8.
        compute_dtype: precision of the products with 4-bit weights.

    Raises:
        ValueError: another kind.

    Example:
        >>> bitsandbytes_config("nf4", compute_dtype=torch.float32).bnb_4bit_use_double_quant
        True
    """
    if kind not in ("nf4", "fp4", "int8"):
        raise ValueError(f"--lora.quantization: expected nf4, fp4, int8 or none, got {kind!r}; nf4 is usual")
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]  # as all of transformers
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=kind == "nf4",
        bnb_4bit_compute_dtype=compute_dtype,
    )


def refuse_quantised_files(settings: Mapping[str, Any], *, source: str) -> None:
    """Refuse a base whose own files hold quantised weights: nothing could be merged into them or proved of them.

    Raises:
        ValueError: names the file, the method and the way out.
    """
    if (found := settings.get("quantization_config")) is not None:
        method = found.get("quant_method", "unknown") if isinstance(found, Mapping) else found
        raise ValueError(
            f"{source}: expected a base in full precision, got weights quantised on disk ({method}); take the "
            "original repository and quantise it while loading (--lora.quantization nf4)"
        )


def keep_differentiable(model: nn.Module) -> None:
    """Keep 4-bit weights in the layout that a gradient passes through; on a GPU nothing changes.

    On a CPU with bfloat16 instructions bitsandbytes repacks them at the first forward pass in evaluation mode, for good,
    and its kernel for the packed layout has no backward: a layer above would train without a gradient from below.
    """
    from bitsandbytes.nn.modules import Linear4bit

    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            layer.support_avx512bf16_for_cpu = False


def check_quantised(model: nn.Module, *, source: str) -> None:
    """Refuse a 4-bit layer that is narrower than a block, and a model of which nothing was quantised.

    Raises:
        ValueError: names the layer and its width.
    """
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    layers = {name: each for name, each in model.named_modules() if isinstance(each, Linear4bit | Linear8bitLt)}
    if not layers:
        raise ValueError(f"{source}: expected linear layers to quantise, found none; load it with quantization none")
    for name, layer in layers.items():
        if isinstance(layer, Linear4bit) and layer.in_features < BLOCK:
            raise ValueError(
                f"{source}: expected at least {BLOCK} inputs of a layer in 4 bits, got {layer.in_features} in {name}; "
                "take int8 or none (--lora.quantization)"
            )


@contextmanager
def each_token_alone(model: nn.Module) -> Iterator[None]:
    """Inside the block LLM.int8() rounds every token by itself; its search for outliers reads the whole text.

    Another token then changes a state through attention only. Other models are left as they are.
    """
    if not getattr(model, "is_loaded_in_8bit", False):
        yield
        return
    from bitsandbytes.nn.modules import Linear8bitLt

    states = [each.state for each in model.modules() if isinstance(each, Linear8bitLt)]
    before = [state.threshold for state in states]
    try:
        for state in states:
            state.threshold = 0.0
        yield
    finally:
        for state, threshold in zip(states, before, strict=True):
            state.threshold = threshold
