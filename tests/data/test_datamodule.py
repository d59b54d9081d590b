"""The datamodule against the sampler: the loader of an epoch is the sampler of that epoch and rank."""

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch

from data.datamodule import LabelledDataModule
from data.sampler import LabelBatchSampler
from data.training_texts import TrainingTexts

LABELS = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
DATA = TrainingTexts(texts=[f"text {i}" for i in range(12)], labels=LABELS, blocks=list(range(12)))


def collate(pairs: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    return list(pairs)


def trainer_of(epoch: int, rank: int, world_size: int, *, batches_done: int = 0) -> SimpleNamespace:
    """What the datamodule asks of a Trainer."""
    loop = SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(completed=batches_done)))
    return SimpleNamespace(
        global_rank=rank,
        world_size=world_size,
        current_epoch=epoch,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        fit_loop=SimpleNamespace(epoch_loop=loop),
    )


def batches(epoch: int, rank: int, world_size: int) -> list[list[tuple[str, int]]]:
    module = LabelledDataModule(DATA, classes=3, per_class=2, batches=4, seed=9, collate=collate)
    module.trainer = trainer_of(epoch, rank, world_size)  # type: ignore[assignment]
    return [[(text, label) for text, label, *_ in batch] for batch in module.train_dataloader()]


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


def test_a_loader_starts_at_the_batch_of_its_epochs_state() -> None:
    module = LabelledDataModule(DATA, classes=3, per_class=2, batches=4, seed=9, collate=collate)
    module.trainer = trainer_of(5, 0, 1, batches_done=3)  # type: ignore[assignment]
    state = module.train_dataloader().state_dict()
    assert state == {"epoch": 5, "batch": 3}
    for epoch, start in ((5, 3), (6, 0)):
        module.trainer = trainer_of(epoch, 0, 1)  # type: ignore[assignment]
        loader = module.train_dataloader()
        loader.load_state_dict(state)
        assert len(loader) == 4
        assert [[item[:2] for item in batch] for batch in loader] == batches(epoch, 0, 1)[start:]


def test_a_loader_draws_nothing_from_the_numbers_of_a_step() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    batches(0, 0, 1)
    assert torch.equal(torch.rand(1), expected)
