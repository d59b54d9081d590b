"""The datamodule against the sampler: the loader of an epoch is the sampler of that epoch and rank."""

from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from data.datamodule import LabelledDataModule
from data.sampler import LabelBatchSampler
from data.training_texts import TrainingTexts

LABELS = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
DATA = TrainingTexts(texts=[f"text {i}" for i in range(12)], labels=LABELS, blocks=list(range(12)))


def collate(pairs: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    return list(pairs)


def batches(epoch: int, rank: int, world_size: int) -> list[list[tuple[str, int]]]:
    module = LabelledDataModule(DATA, classes=3, per_class=2, batches=4, seed=9, collate=collate)
    module.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, current_epoch=epoch)  # type: ignore[assignment]
    return list(module.train_dataloader())


@pytest.mark.parametrize(("epoch", "rank", "world_size"), [(0, 0, 1), (3, 0, 1), (3, 1, 2)])
def test_the_loader_yields_the_texts_that_the_sampler_names(epoch: int, rank: int, world_size: int) -> None:
    expected = LabelBatchSampler(
        LABELS, classes=3, per_class=2, batches=4, seed=9, blocks=DATA.blocks, rank=rank, world_size=world_size
    )
    expected.set_epoch(epoch)
    named = [[(f"text {index}", LABELS[index]) for index in batch] for batch in expected]
    assert batches(epoch, rank, world_size) == named


def test_epochs_are_shuffled_anew() -> None:
    assert batches(0, 0, 1) != batches(1, 0, 1)
