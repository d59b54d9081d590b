"""run_memory: what a run holds on a device at its fullest: while it trains, at the end of a stage, when it measures a merge."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lightning_app.adapted_names import adapted_names
from lightning_app.config import TrainConfig
from models.backbone import Backbone
from models.sizes import ModelSizes, model_sizes
from models.training_memory import training_memory


def run_sizes(config: TrainConfig, folder: Path | None, row: Backbone | None) -> ModelSizes:
    """Count the run's model as it is loaded and adapted; see `model_sizes`.

    Raises:
        ValueError: what `model_sizes` says.
    """
    targets, experts = adapted_names(config.lora, row)
    return model_sizes(
        folder,
        row=row,
        r=config.lora.r,
        targets=targets,
        adapt_top=config.adapt_top,
        use_dora=config.lora.use_dora,
        expert_parameters=experts,
        dense=config.lora.dense,
        dtype=None if config.dtype is None else getattr(torch, config.dtype),
        quantization=config.lora.quantization,
    )


def run_memory(config: TrainConfig, sizes: ModelSizes, batches: Sequence[tuple[int, int]]) -> dict[str, int]:
    """Bytes a device, by `training_memory`, of the stage that needs most.

    ``merged`` is added: a merge is loaded as the base is stored, whole and in full precision, to be measured on the first
    device; on the CPU the trained model is still there beside it. ``peak`` is the largest of all.

    Args:
        config: of the run.
        sizes: from `run_sizes`.
        batches: of every stage, the texts of a batch on one device and the tokens of the longest text. With a token budget only
            a part of the batch is held at once.
    """
    # no states are kept of the blocks below the lowest adapted one
    adapted = sizes.blocks if config.adapt_top is None else min(config.adapt_top, sizes.blocks)
    trained = replace(sizes, blocks=adapted) if sizes.adapted else sizes
    every = [
        training_memory(
            trained,
            texts=texts if config.token_budget is None else min(texts, -(-config.token_budget // tokens)),
            tokens=tokens,
            precision=config.precision,
            devices=config.ranks,
            strategy="fsdp" if config.strategy == "fsdp" else "ddp",
            gradient_checkpointing=config.gradient_checkpointing,
        )
        for texts, tokens in batches
    ]
    largest = max(every, key=lambda each: each["peak"])
    kept = 0 if computes_on_gpu(config) else largest["weights"] + largest["adapter"]
    merged = sizes.stored_bytes + kept if config.merges else 0
    return largest | {"merged": merged, "peak": max(largest["peak"], merged)}


def computes_on_gpu(config: TrainConfig) -> bool:
    """Whether the run takes a GPU."""
    return torch.cuda.is_available() and config.accelerator in ("auto", "gpu", "cuda")
