"""LoRA on an embedder: which linear layers it adapts, and how it is put there.

Only linear layers inside the repeated transformer blocks are adapted. Heads and poolers outside them are not:
an adapter on BERT's pooler, which no embedding reads, would never see a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from sentence_transformers import SentenceTransformer
from torch import nn

from models.adapter import find_adapter, transformer_of
from models.quiet import quiet_loading


def add_lora(
    embedder: SentenceTransformer,
    *,
    r: int = 16,
    alpha: int = 32,
    dropout: float = 0.0,
    targets: Sequence[str] | None = None,
    adapt_top: int | None = None,
    seed: int = 0,
) -> PeftModel:
    """Wrap the embedder's transformer in LoRA (in place) and freeze everything else, Dense modules included.

    The adapter starts as the identity (lora_B = 0) and is kept in float32 over a base of any precision. lora_A is a
    pure function of `seed`; the global random state is left as it was.

    Args:
        embedder: without an adapter yet.
        r: rank, at least 1.
        alpha: the update is scaled by alpha / r.
        dropout: on the adapter's input, in [0, 1).
        targets: names of linear layers (the last part of their path, such as ``q_proj``), usually the
            ``lora_targets`` of the backbone's row; None for every linear layer inside the repeated blocks.
        adapt_top: adapt the last K blocks only; None for all.
        seed: draws lora_A.

    Raises:
        ValueError: a rank, dropout or adapt_top out of range, a target that is in no block, an adapter already there.

    Reference: Hu et al. (2021), LoRA, arXiv:2106.09685.
    """
    if r < 1:
        raise ValueError(f"--lora.r: expected a rank of at least 1, got {r}; 16 is usual")
    if not 0 <= dropout < 1:
        raise ValueError(f"--lora.dropout: expected a number in [0, 1), got {dropout}; 0 is usual here")
    if find_adapter(embedder) is not None:
        raise ValueError("add_lora: expected an embedder without an adapter, got one; load the base again")
    model = transformer_of(embedder)
    config = LoraConfig(
        task_type=TaskType.FEATURE_EXTRACTION,
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=target_modules(model, targets=targets, adapt_top=adapt_top),
        bias="none",
    )
    embedder.requires_grad_(False)
    with quiet_loading(), torch.random.fork_rng(devices=[embedder.device] if embedder.device.type == "cuda" else []):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    embedder[0].model = adapted
    return adapted


def target_modules(
    model: nn.Module, *, targets: Sequence[str] | None = None, adapt_top: int | None = None
) -> list[str]:
    """Full names of the linear layers to adapt: those inside the last `adapt_top` blocks whose last part is a target.

    Full names are exact where suffixes are not: ``dense`` alone also matches BERT's pooler.

    Raises:
        ValueError: `adapt_top` outside 1..number of blocks, or a target that no block has.
    """
    stack_name, stack = block_stack(model)
    if adapt_top is not None and not 1 <= adapt_top <= len(stack):
        raise ValueError(
            f"--adapt-top: expected a number of layers from 1 to {len(stack)} (this model's), got {adapt_top}; "
            "lower it, or leave it out to adapt all layers"
        )
    first = 0 if adapt_top is None else len(stack) - adapt_top
    linear = [
        f"{stack_name}.{index}.{name}"
        for index in range(first, len(stack))
        for name, module in stack[index].named_modules()
        if isinstance(module, nn.Linear)
    ]
    if targets is None:
        return linear
    for target in targets:
        if not any(_matches(name, target) for name in linear):
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise ValueError(
                f"--lora.targets: expected names of linear layers in this model's blocks ({', '.join(known)}), "
                f"got {target!r}; name one of them"
            )
    return [name for name in linear if any(_matches(name, target) for target in targets)]


def block_stack(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Name and list of the model's repeated blocks: the first module list as long as its config says.

    Raises:
        ValueError: when the model has no such list.
    """
    depth = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return name, module
    raise ValueError(
        f"model {type(model).__name__}: expected a list of {depth} transformer blocks, found none; "
        "LoRA needs a transformer with repeated blocks"
    )


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
