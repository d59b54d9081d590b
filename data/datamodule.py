"""LabelledDataModule: labelled texts as P x K batches, the same on any number of ranks."""

from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from data.sampler import LabelBatchSampler
from data.training_texts import Item, TrainingTexts


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

    def train_dataloader(self) -> DataLoader[Item]:
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
        return DataLoader(
            self.data.items(),  # type: ignore[arg-type]
            batch_sampler=sampler,
            collate_fn=self.collate,
            num_workers=self.num_workers,
        )
