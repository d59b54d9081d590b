"""LabelledDataModule: labelled texts as P x K batches, the same on any number of ranks."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from data.sampler import LabelBatchSampler
from data.training_texts import Item, TrainingTexts


class EpochLoader(DataLoader[Item]):
    """The batches of one epoch, which Lightning can start in the middle.

    Args:
        sampler: Of the epoch.
        batches_done: How many of its batches a state to be saved has behind it.
        settings: Of torch's DataLoader.
    """

    def __init__(
        self, items: Sequence[Item], *, sampler: LabelBatchSampler, batches_done: Callable[[], int], **settings: Any
    ) -> None:
        # workers are seeded from here, so that no number is drawn that a step could have drawn
        generator = torch.Generator().manual_seed(sampler.epoch)
        super().__init__(items, batch_sampler=sampler, generator=generator, **settings)  # type: ignore[arg-type]
        self.batches_of, self.batches_done = sampler, batches_done

    def state_dict(self) -> dict[str, int]:
        """Epoch and batch."""
        return {"epoch": self.batches_of.epoch, "batch": self.batches_done()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Start at the batch of the state, if it is one of this epoch."""
        if state_dict["epoch"] == self.batches_of.epoch:
            self.batches_of.set_epoch(self.batches_of.epoch, start_batch=state_dict["batch"])


class LabelledDataModule(LightningDataModule):
    """Makes each epoch's loader anew, since Lightning never tells a batch sampler the epoch.

    Set ``reload_dataloaders_every_n_epochs=1`` and ``use_distributed_sampler=False`` in the Trainer.

    Args:
        data: What to train on.
        classes, per_class, batches, seed: See `LabelBatchSampler`.
        collate: items -> a batch.
        num_workers: Processes that make batches ready, as in torch's DataLoader.
    """

    def __init__(
        self,
        data: TrainingTexts,
        *,
        classes: int,
        per_class: int,
        batches: int,
        seed: int,
        collate: Callable[[Sequence[Item]], Any],
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.data, self.collate, self.num_workers = data, collate, num_workers
        self.classes, self.per_class, self.batches, self.seed = classes, per_class, batches, seed

    def train_dataloader(self) -> EpochLoader:
        """This rank's batches of the current epoch."""
        trainer = self.trainer
        assert trainer is not None, "a datamodule belongs to a Trainer"
        sampler = LabelBatchSampler(
            self.data.labels,
            classes=self.classes,
            per_class=self.per_class,
            batches=self.batches,
            seed=self.seed,
            blocks=self.data.blocks,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )
        sampler.set_epoch(trainer.current_epoch)
        return EpochLoader(
            self.data.items(),
            sampler=sampler,
            batches_done=lambda: trainer.fit_loop.epoch_loop.batch_progress.current.completed,
            collate_fn=self.collate,
            num_workers=self.num_workers,
            pin_memory=trainer.strategy.root_device.type == "cuda",
        )
