"""sentence-transformers' own trainer on the batches, loss, optimiser and schedule of ours.

Its trainer asks for the package ``datasets``, of which it uses a table of texts.  Batches are given to it by a loader
instead, as its ``get_train_dataloader`` offers; it costs it less than a table, and nothing else of the trainer changes.
"""

import contextlib
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from benchmarks.training_case import Precision
from benchmarks.training_ours import Steps, wait
from data.training_texts import TrainingTexts
from lightning_app.module import ContrastiveEmbedder
from models.losses import supervised_contrastive_loss

TRAINER = "sentence_transformers.base.trainer"


class SameLoss(nn.Module):
    """Our supervised contrastive loss as sentence-transformers' trainer calls losses; it remembers the values."""

    def __init__(self, model: SentenceTransformer, temperature: float) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature
        self.values: list[Tensor] = []

    def forward(self, features: Sequence[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """The loss of one batch."""
        loss = supervised_contrastive_loss(
            self.model(features[0])["sentence_embedding"], labels, temperature=self.temperature
        )
        self.values.append(loss.detach())
        return loss


class PeerClock(TrainerCallback):
    """The time at the end of each step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Look at the clock when the device is done."""
        wait()
        self.ends.append(time.perf_counter())


class GivenBatches(SentenceTransformerTrainer):
    """The trainer, with batches that are told."""

    rows: list[dict[str, Any]]
    batches: list[list[int]]

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches in their order, tokenised and padded by the trainer's own collator."""
        loader: DataLoader[Any] = DataLoader(
            self.rows,  # type: ignore[arg-type]
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
        )
        return self.accelerator.prepare(loader)  # type: ignore[no-any-return]


def train_peer(
    embedder: SentenceTransformer,
    data: TrainingTexts,
    batches: list[list[int]],
    folder: Path,
    *,
    precision: Precision = "32-true",
    device: str = "cpu",
) -> Steps:
    """Train one step a batch; ``embedder`` has its adapter."""
    steps = len(batches)
    module = ContrastiveEmbedder(embedder, total_steps=steps)
    made = module.configure_optimizers()
    loss, clock = SameLoss(embedder, module.temperature), PeerClock()
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=len(batches[0]),
        max_grad_norm=1.0,
        bf16=precision == "bf16-mixed",
        use_cpu=device == "cpu",
        dataloader_pin_memory=False,
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
    )
    names = {"is_training_available": lambda: True, "IterableDataset": DataLoader}
    with patch.multiple(TRAINER, create=True, **names):
        trainer = GivenBatches(
            model=embedder,
            args=arguments,
            loss=loss,
            callbacks=[clock],
            optimizers=(made["optimizer"], made["lr_scheduler"]["scheduler"]),
        )
    trainer.rows = [{"text": text, "label": label} for text, label in zip(data.texts, data.labels, strict=True)]
    trainer.batches = batches
    # it prints a summary
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    return Steps(ends=clock.ends, losses=[float(value) for value in loss.values])
