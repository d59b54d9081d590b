"""Loss and gradients of single steps from given weights, by the Trainer, on one or two ranks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from torch import Tensor

from data.datamodule import LabelledDataModule
from data.training_texts import TrainingTexts
from lightning_app.checkpoint_io import SafetensorsIO
from lightning_app.module import ContrastiveEmbedder
from lightning_app.sharded_strategy import ShardedStrategy
from models.checkpointing import checkpoint_blocks
from models.embedder import load_embedder
from models.lora import add_lora
from models.sharding import whole_tensor
from storage.tensor_file import read_tensors, write_tensors

Weights = Mapping[str, Tensor]


class ForkedSharding(ShardedStrategy):
    """Its ranks are forks of the test: a script would be started again."""

    def _configure_launcher(self) -> None:
        self._launcher = _MultiProcessingLauncher(self, start_method="fork")


def uneven_texts() -> TrainingTexts:
    """40 texts of 1 to 13 terms under 4 labels."""
    rows = [
        (", ".join(str((k + 2) * i + j) for i in range(1 + (5 * j + 3 * k) % 13)), k)
        for k in range(4)
        for j in range(10)
    ]
    return TrainingTexts(texts=[t for t, _ in rows], labels=[k for _, k in rows], blocks=range(len(rows)))


def build_module(
    folder: Path,
    *,
    dropout: float = 0.0,
    quantization: Any = "none",
    checkpointing: bool = False,
    adapt_top: int | None = None,
    kind: type[ContrastiveEmbedder] = ContrastiveEmbedder,
    **how: Any,
) -> ContrastiveEmbedder:
    """A module in training mode whose adapter has the same weights each time."""
    torch.manual_seed(0)
    embedder = load_embedder(folder, quantization=quantization)
    add_lora(embedder, r=4, alpha=8, dropout=dropout, targets=["q_proj", "v_proj", "down_proj"], adapt_top=adapt_top)
    if checkpointing:
        checkpoint_blocks(embedder)
    embedder.train()
    module = kind(embedder, learning_rate=1e-3, total_steps=8, **how)
    module.tokenise(uneven_texts().texts)
    return module


def some_weights(module: ContrastiveEmbedder) -> list[dict[str, Tensor]]:
    """What the adapter begins with, and weights near and far from it."""
    draw = torch.Generator().manual_seed(4)
    start = {name: each.clone() for name, each in module.state_dict().items()}
    return [
        {name: each + spread * torch.randn(each.shape, generator=draw) for name, each in start.items()}
        for spread in (0.0, 0.02, 0.2)
    ]


class Record(Callback):
    """Before step k takes the k-th weights; the first rank writes each step's loss and gradients before clipping."""

    def __init__(self, folder: Path, weights: Sequence[Weights]) -> None:
        self.folder, self.weights, self.grads = folder, weights, {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module.load_state_dict(self.weights[batch_idx])

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.grads = {n: whole_tensor(p.grad).clone() for n, p in pl_module.named_parameters() if p.grad is not None}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.is_global_zero:
            write_tensors(self.folder / f"{batch_idx}.safetensors", {**self.grads, "loss": outputs["loss"].detach()})


def steps(
    module: ContrastiveEmbedder,
    folder: Path,
    weights: Sequence[Weights],
    *,
    devices: int = 1,
    callbacks: Sequence[Callback] = (),
    num_workers: int = 0,
    **settings: Any,
) -> list[dict[str, Tensor]]:
    """One step from each of the weights: its gradients by name, and ``loss``."""
    folder.mkdir()
    if settings.get("strategy") == "fsdp" and devices > 1:
        settings["strategy"] = ForkedSharding(
            data_parallel_size=devices, tensor_parallel_size=1, process_group_backend="gloo"
        )
    elif settings.get("strategy", "fsdp") == "fsdp":
        settings["strategy"] = "ddp_fork" if devices > 1 else "auto"
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        max_epochs=1,
        callbacks=[Record(folder, weights), *callbacks],
        plugins=[SafetensorsIO()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
        gradient_clip_val=1.0,
        **settings,
    )
    data = LabelledDataModule(
        uneven_texts(),
        classes=4,
        per_class=4,
        batches=len(weights),
        seed=7,
        collate=module.collate,
        num_workers=num_workers,
    )
    trainer.fit(module, datamodule=data)
    return [read_tensors(folder / f"{number}.safetensors") for number in range(len(weights))]


def on_outputs(module: ContrastiveEmbedder, act: Callable[[Tensor, int], None]) -> None:
    """Call ``act(embeddings, tokens of the part)`` after each pass of the embedder."""

    def hook(_: Any, inputs: Any, output: Any) -> None:
        act(output["sentence_embedding"], inputs[0]["input_ids"].numel())

    module.embedder.register_forward_hook(hook)


def assert_alike(found: Sequence[Weights], expected: Sequence[Weights], *, atol: float) -> None:
    """Every loss and every gradient, which are not all zeros."""
    assert len(found) == len(expected)
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert ours.keys() == theirs.keys()
        assert max(each.abs().max() for name, each in theirs.items() if name != "loss") > 1e-3
        for name, each in theirs.items():
            where = f"weights {number}, {re.sub('^embedder.', '', name)}"
            torch.testing.assert_close(ours[name], each, atol=atol, rtol=0, msg=lambda m, w=where: f"{w}: {m}")
