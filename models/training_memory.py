"""training_memory: what training a model holds on a device; the activations are an estimate, the rest is counted."""

from __future__ import annotations

from typing import Literal

import torch

from models.sizes import ModelSizes

CAST_TO = {"64-true": 8, "bf16-true": 2, "16-true": 2}
"""Precisions that change the weights themselves, the adapter's included: bytes a number."""
KEPT_AS = {"32-true": 4, "bf16-mixed": 2, "16-mixed": 2}
"""Precisions that leave the weights as they are in the folder, and the adapter in float32: bytes of a product."""


def training_memory(
    sizes: ModelSizes,
    *,
    texts: int,
    tokens: int,
    precision: str = "32-true",
    devices: int = 1,
    strategy: Literal["ddp", "fsdp"] = "ddp",
    gradient_checkpointing: bool = False,
) -> dict[str, int]:
    """Bytes that a training step holds on one device.

    Counted: ``weights`` (as they are loaded, in few bits too); ``adapter`` (the trainable weights when these are an adapter's),
    ``gradients`` (as large), ``optimizer`` (AdamW's two averages, 8 bytes a float32 weight), ``buckets`` (DDP's copy of the
    gradients, on more than one device). With FSDP these are spread over the devices, there are no buckets, and ``gathered`` is
    what a device has whole while it computes: one block, and what lies outside the blocks.

    Estimated: ``activations``, what the backward pass needs of each block: texts x tokens x blocks x (10 width + 4 intermediate)
    numbers, 2 intermediate where the blocks have no gate, as often as experts read a token, 2 outputs more a layer with DoRA,
    and 2 heads x tokens more where attention holds its scores. A number takes 4 bytes (LoRA reads float32 copies, also over a
    bfloat16 base), about 3 in mixed precision, 2 when all is cast; mixed precision over a float32 base also keeps a 2-byte copy
    of every weight in full precision for the backward pass, and an adapter on stacked experts its sum with them. With
    checkpointing this is one block's, beside the input of every block.

    ``stage_end``: with an adapter, a second copy of the base, loaded alike, is there to check the adapter that a stage has saved.
    ``peak`` is the larger of training and stage end. CUDA's context and allocator come on top.

    Args:
        sizes: from `model_sizes`.
        texts: of a batch, on one device.
        tokens: of the longest text.
        precision: Lightning's.
        devices: over which is trained.
        strategy: ddp, where every device holds the whole model, or fsdp (FSDP2).
        gradient_checkpointing: as in `checkpoint_blocks`.

    Raises:
        ValueError: a precision that is none of Lightning's for these weights.

    Reference: the counts of Korthikanti et al. (2022), arXiv:2205.05198, section 4.1, made again for LoRA on gated blocks; Zhao
    et al. (2023), PyTorch FSDP, arXiv:2304.11277, section 3.

    Example:
        >>> from models.backbones import find_backbone
        >>> from models.sizes import model_sizes
        >>> sizes = model_sizes(None, row=find_backbone("tiny-encoder"))
        >>> training_memory(sizes, texts=48, tokens=64)["optimizer"] == 8 * sizes.trainable
        True
    """
    cast = CAST_TO.get(precision)
    if cast is None and precision not in KEPT_AS:
        known = ", ".join((*KEPT_AS, *CAST_TO))
        raise ValueError(f"--precision: expected one of {known}, got {precision!r}; 32-true is the default")
    number = cast or 4
    weights = sizes.weight_bytes
    if cast is not None:
        weights = sizes.packed_bytes + cast * (sizes.parameters - sizes.trained_dense - sizes.packed_parameters)
    whole = sizes.adapted == 0
    states = sizes.trainable * number
    shards = devices if strategy == "fsdp" else 1
    counted = {
        "weights": -(-weights // shards),
        "adapter": 0 if whole else -(-states // shards),
        "gradients": -(-states // shards),
        "optimizer": -(-2 * states // shards),
        "buckets": states if devices > shards else 0,
        "gathered": sizes.block_bytes + sizes.outside_bytes if shards > 1 else 0,
    }
    activations = _activations(sizes, texts * tokens, tokens, precision=precision, checkpointing=gradient_checkpointing)
    held = sum(counted.values())
    stage_end = 0 if whole else held + weights
    return {**counted, "activations": activations, "stage_end": stage_end, "peak": max(held + activations, stage_end)}


def _activations(sizes: ModelSizes, read: int, tokens: int, *, precision: str, checkpointing: bool) -> int:
    """Bytes for ``read`` tokens of texts that are ``tokens`` long."""
    mixed = precision.endswith("-mixed")
    cast = CAST_TO.get(precision)
    number = 3 if mixed else cast or 4
    inner = (4 if sizes.gated else 2) * sizes.intermediate * sizes.experts_a_token
    values = 10 * sizes.width + inner + 2 * sizes.dora_outputs + 2 * sizes.eager_heads * tokens
    blocks = 1 if checkpointing else sizes.blocks
    held = blocks * read * values * number + 4 * (sizes.block_experts if checkpointing else sizes.adapted_experts)
    if checkpointing:
        held += read * sizes.blocks * sizes.width * (cast or sizes.dtype.itemsize)
    if mixed and sizes.dtype == torch.float32:
        held += 2 * (sizes.parameters - sizes.packed_parameters) * blocks // sizes.blocks
    return held
