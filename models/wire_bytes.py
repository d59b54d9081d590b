"""wire_bytes: what one training step sends between devices."""

from __future__ import annotations

from typing import Literal

from models.sizes import ModelSizes


def wire_bytes(
    sizes: ModelSizes,
    *,
    texts: int,
    devices: int,
    strategy: Literal["ddp", "fsdp"] = "ddp",
    parts: int = 1,
    recomputed: bool = False,
) -> dict[str, int]:
    """Bytes that one device receives in a step (and sends, as collectives work on rings).

    ``gradients``: of the trainable weights, in float32: all-reduced once a step with DDP, 2 (W - 1) / W of their size for W
    devices; reduce-scattered once a part with FSDP, (W - 1) / W.
    ``weights``: with FSDP every pass gathers what the device does not have, (W - 1) / W of the base and the adapter: forward and
    backward, once more where a part is computed again; every part of a batch is a pass of its own. For several parts
    this is an upper bound: a block at the bottom and what lies outside the blocks are partly kept from one to the next.
    ``embeddings``: gathered from the other devices, and their gradients on the way back.

    So with FSDP the parts of a batch cost what they save in padding, and DDP over an adapter sends next to nothing.

    Args:
        sizes: from `model_sizes`.
        texts: of a batch, on one device.
        devices: W, over which is trained.
        strategy: ddp or fsdp (FSDP2, which drops gathered weights after the forward pass).
        parts: of a batch on one device, as `partition` cuts it.
        recomputed: whether parts are computed again in the backward pass (a token budget). Gradient checkpointing computes a
            block again while it is gathered.

    Reference: Patarasuk and Yuan (2009), Bandwidth optimal all-reduce algorithms; Zhao et al. (2023), PyTorch FSDP,
    arXiv:2304.11277, section 3.

    Example:
        >>> from models.backbones import find_backbone
        >>> from models.sizes import model_sizes
        >>> sizes = model_sizes(None, row=find_backbone("tiny-encoder"))
        >>> wire_bytes(sizes, texts=24, devices=2)["gradients"] == 4 * sizes.trainable
        True
    """
    others = devices - 1
    own = 4 * sizes.trainable
    adapter = 0 if sizes.adapted == 0 else own
    if strategy == "fsdp":
        gradients = parts * own * others // devices
        weights = (3 if recomputed else 2) * parts * (sizes.weight_bytes + adapter) * others // devices
    else:
        gradients, weights = 2 * own * others // devices, 0
    embeddings = 2 * others * texts * sizes.width * 4
    return {
        "gradients": gradients,
        "weights": weights,
        "embeddings": embeddings,
        "total": gradients + weights + embeddings,
    }
