"""Gradient checkpointing: the states inside a block are computed again in the backward pass, for less memory."""

from __future__ import annotations

from functools import partial
from typing import Any

from sentence_transformers import SentenceTransformer
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from models.adapter import transformer_of


def checkpoint_blocks(embedder: SentenceTransformer) -> int:
    """Keep only each block's input in training mode; loss and gradients stay what they were, bit for bit on the CPU.

    The kind is the non-reentrant one, which reaches an adapter over a frozen base and suits DDP. Random numbers are
    drawn again as they were, so that dropout is the same; in evaluation mode nothing is different.

    Args:
        embedder: with or without an adapter; changed in place, and not in what is saved of it.

    Returns:
        The number of blocks.

    Raises:
        ValueError: the model has no blocks that can do it, such as one of remote code.

    Reference: Chen et al. (2016), Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174.

    Example:
        >>> from models.embedder import load_embedder
        >>> checkpoint_blocks(load_embedder("tiny-encoder"))
        5
    """
    model = transformer_of(embedder)
    blocks: list[Any] = [each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)]
    if not blocks:
        raise ValueError(
            f"--gradient-checkpointing: expected a model of transformers' own blocks, got {type(model).__name__} without "
            "any; drop the flag, or take smaller batches"
        )
    for block in blocks:
        # Not the model's own switch, which would send gradients down to the embeddings, below the lowest adapter.
        block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        block.gradient_checkpointing = True
    return len(blocks)
