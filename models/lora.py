"""LoRA on an embedder: which linear layers and stacked experts it adapts, and how it is put there.

Only what is inside the repeated transformer blocks is adapted. Heads and poolers outside them are not: an adapter
on BERT's pooler, which no embedding reads, would never see a gradient. Nor are routers of a mixture of experts,
unless they are named: what they choose has no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from sentence_transformers import SentenceTransformer
from torch import nn

from models.adapter import find_adapter, transformer_of
from models.dense import carry_dense
from models.quiet import quiet_loading

ROUTERS = ("router", "gate")


def add_lora(
    embedder: SentenceTransformer,
    *,
    r: int = 16,
    alpha: int = 32,
    dropout: float = 0.0,
    targets: Sequence[str] | None = None,
    adapt_top: int | None = None,
    use_dora: bool = False,
    use_rslora: bool = False,
    expert_parameters: Sequence[str] = (),
    dense: Literal["freeze", "train"] = "freeze",
    seed: int = 0,
) -> PeftModel:
    """Wrap the embedder's transformer in LoRA (in place) and freeze everything else.

    The adapter starts as the identity (lora_B = 0; with DoRA up to rounding) and is kept in float32 over a base of
    any precision, quantised ones included. lora_A is a pure function of `seed`; the global random state is left as
    it was.

    Args:
        embedder: without an adapter yet.
        r: rank, at least 1.
        alpha: the update is scaled by alpha / r.
        dropout: on the adapter's input, in [0, 1).
        targets: names of linear layers (the last part of their path, such as ``q_proj``), usually the
            ``lora_targets`` of the backbone's row; None for every linear layer inside the repeated blocks.
        adapt_top: adapt the last K blocks only; None for all.
        use_dora: train the lengths of the adapted weights' rows too (PEFT's ``lora_magnitude_vector``).
        use_rslora: scale the update by alpha / sqrt(r).
        expert_parameters: names inside a block of stacked expert weights to adapt too, usually those of the
            backbone's row; PEFT has neither dropout nor DoRA for them.
        dense: ``"train"`` trains the embedder's Dense modules too, in float32; see `carry_dense`.
        seed: draws lora_A.

    Raises:
        ValueError: a rank, dropout or adapt_top out of range, a target that is in no block, experts with dropout or
            DoRA, DoRA over int8 on the CPU, Dense modules to be trained where there are none, an adapter already there.

    Reference: Hu et al. (2021), LoRA, arXiv:2106.09685; Liu et al. (2024), DoRA, arXiv:2402.09353; Kalajdzievski
    (2023), A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA, arXiv:2312.03732.

    Example:
        >>> from models.embedder import load_embedder
        >>> embedder = load_embedder("tiny-llm")
        >>> _ = add_lora(embedder, r=2, targets=["q_proj"], adapt_top=1, use_dora=True)
        >>> [tuple(each.shape) for each in embedder.parameters() if each.requires_grad]
        [(2, 128), (128, 2), (128,)]
    """
    if r < 1:
        raise ValueError(f"--lora.r: expected a rank of at least 1, got {r}; 16 is usual")
    if alpha < 1:
        raise ValueError(f"--lora.alpha: expected at least 1, got {alpha}; twice the rank is usual")
    if not 0 <= dropout < 1:
        raise ValueError(f"--lora.dropout: expected a number in [0, 1), got {dropout}; 0 is usual here")
    if find_adapter(embedder) is not None:
        raise ValueError("add_lora: expected an embedder without an adapter, got one; load the base again")
    if expert_parameters:
        _check_experts(expert_parameters, dropout=dropout, use_dora=use_dora)
    model = transformer_of(embedder)
    if use_dora and getattr(model, "is_loaded_in_8bit", False) and embedder.device.type == "cpu":
        raise ValueError(
            "--lora.use-dora: expected a base in full precision or 4 bits on the CPU, got int8, whose scales PEFT loses "
            "there; take --lora.quantization nf4"
        )
    config = LoraConfig(
        task_type=TaskType.FEATURE_EXTRACTION,
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=target_modules(model, targets=targets, adapt_top=adapt_top),
        target_parameters=target_parameters(model, expert_parameters, adapt_top=adapt_top) or None,
        use_dora=use_dora,
        use_rslora=use_rslora,
        bias="none",
    )
    embedder.requires_grad_(False)
    if dense == "train":
        carry_dense(embedder, trainable=True)
    with quiet_loading(), torch.random.fork_rng(devices=[embedder.device] if embedder.device.type == "cuda" else []):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    if use_dora:
        _measure_magnitudes(adapted)
    embedder[0].model = adapted
    return adapted


def target_modules(
    model: nn.Module, *, targets: Sequence[str] | None = None, adapt_top: int | None = None
) -> list[str]:
    """Full names of the linear layers to adapt: those inside the last `adapt_top` blocks whose last part is a target.

    Full names are exact where suffixes are not: ``dense`` alone also matches BERT's pooler.

    Raises:
        ValueError: `adapt_top` outside 1..number of blocks, a target that no block has, or none in these blocks.
    """
    linear = _linear_layers(_top_blocks(model, adapt_top))
    if targets is None:
        return [name for name in linear if not set(ROUTERS) & set(name.split("."))]
    everywhere = _linear_layers(_top_blocks(model, None))
    for target in targets:
        # A mixture of experts may have a target in some of its blocks only.
        if not any(_matches(name, target) for name in everywhere):
            raise ValueError(
                f"--lora.targets: expected names of linear layers in this model's blocks ({_last_parts(everywhere)}), "
                f"got {target!r}; name one of them"
            )
    found = [name for name in linear if any(_matches(name, target) for target in targets)]
    if targets and not found:
        raise ValueError(
            f"--lora.targets: expected linear layers of the last {adapt_top} blocks ({_last_parts(linear)}), got "
            f"{', '.join(targets)}; name one of them, or raise --adapt-top"
        )
    return found


def target_parameters(model: nn.Module, names: Sequence[str], *, adapt_top: int | None = None) -> list[str]:
    """Full names of the expert weights to adapt: `names` inside the last `adapt_top` blocks, where a block has them.

    Raises:
        ValueError: `adapt_top` out of range, or a name that no block has.
    """
    for name in names:
        if not any(name in dict(block.named_parameters()) for _, block in _top_blocks(model, None)):
            raise ValueError(
                f"expert parameters: expected names of weights in the blocks of {type(model).__name__}, got {name!r}; "
                "give their names inside a block, or none"
            )
    return [
        f"{place}.{name}"
        for place, block in _top_blocks(model, adapt_top)
        for name in names
        if name in dict(block.named_parameters())
    ]


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


def _top_blocks(model: nn.Module, adapt_top: int | None) -> list[tuple[str, nn.Module]]:
    """Name and module of the last `adapt_top` blocks."""
    stack_name, stack = block_stack(model)
    if adapt_top is not None and not 1 <= adapt_top <= len(stack):
        raise ValueError(
            f"--adapt-top: expected a number of layers from 1 to {len(stack)} (this model's), got {adapt_top}; "
            "lower it, or leave it out to adapt all layers"
        )
    blocks = [(f"{stack_name}.{index}", block) for index, block in enumerate(stack)]
    return blocks if adapt_top is None else blocks[-adapt_top:]


def _linear_layers(blocks: Sequence[tuple[str, nn.Module]]) -> list[str]:
    return [
        f"{place}.{name}"
        for place, block in blocks
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear)
    ]


def _last_parts(names: Sequence[str]) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in names}))


def _check_experts(names: Sequence[str], *, dropout: float, use_dora: bool) -> None:
    for flag, asked in ((f"--lora.dropout {dropout:g}", dropout > 0), ("--lora.use-dora", use_dora)):
        if asked:
            raise ValueError(
                f"{flag}: expected plain LoRA on stacked experts ({', '.join(names)}), for which PEFT has neither "
                "dropout nor DoRA; drop the flag, or name linear layers only in --lora.targets"
            )


def _measure_magnitudes(adapted: PeftModel) -> None:
    """Lengths of the rows in float32: PEFT rounds them to the base's precision, in which the identity is lost."""
    layers: list[Any] = [each for each in adapted.modules() if isinstance(each, LoraLayer)]
    for layer in layers:
        for name, magnitude in layer.lora_magnitude_vector.items():
            magnitude.update_layer(
                base_layer=layer.get_base_layer(),
                lora_A=layer.lora_A[name].weight.detach(),
                lora_B=layer.lora_B[name].weight.detach(),
                scaling=layer.scaling[name],
            )


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
