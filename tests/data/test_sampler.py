"""The P x K sampler: every batch a pure function of its number, shared among the ranks without rest."""

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.sampler import LabelBatchSampler

LABELS = [label for label in range(7) for _ in range(12)]
BLOCKS = [f"{label}:{i // 3}" for label in range(7) for i in range(12)]


def sampler(**settings: object) -> LabelBatchSampler:
    defaults: dict[str, object] = {"classes": 4, "per_class": 3, "batches": 6, "seed": 5, "blocks": BLOCKS}
    return LabelBatchSampler(LABELS, **(defaults | settings))  # type: ignore[arg-type]


def test_the_same_arguments_give_the_same_batches() -> None:
    assert list(sampler()) == list(sampler())
    assert list(sampler()) != list(sampler(seed=6))
    assert len(sampler()) == len(list(sampler())) == 6


@given(epoch=st.integers(0, 50), world=st.sampled_from([1, 2, 3, 4, 6, 12]), seed=st.integers())
def test_the_ranks_shares_interleave_to_the_batch_of_one_process(epoch: int, world: int, seed: int) -> None:
    alone = sampler(seed=seed)
    alone.set_epoch(epoch)
    shares = []
    for rank in range(world):
        of_rank = sampler(seed=seed, rank=rank, world_size=world)
        of_rank.set_epoch(epoch)
        shares.append(list(of_rank))
    for number, batch in enumerate(alone):
        of_ranks = [share[number] for share in shares]
        assert {len(share) for share in of_ranks} == {len(batch) // world}
        assert [index for together in zip(*of_ranks, strict=True) for index in together] == batch


@given(start=st.integers(0, 6), epoch=st.integers(0, 9))
def test_a_start_batch_skips_exactly_so_many(start: int, epoch: int) -> None:
    whole, later, at_once = sampler(), sampler(), sampler(start_batch=start)
    whole.set_epoch(epoch)
    later.set_epoch(epoch, start_batch=start)
    assert list(later) == list(whole)[start:]
    assert len(later) == 6, "the length stays that of the whole epoch"
    whole.set_epoch(0)
    assert list(at_once) == list(whole)[start:]
    at_once.set_epoch(1)
    assert len(list(at_once)) == 6


def test_batches_do_not_depend_on_which_were_read_before() -> None:
    read, fresh = sampler(), sampler()
    list(read)
    assert read.global_batch(4) == fresh.global_batch(4)


def test_epochs_and_batches_differ() -> None:
    found = sampler()
    seen = set()
    for epoch in range(4):
        found.set_epoch(epoch)
        seen |= {tuple(batch) for batch in found}
    assert len(seen) == 24


@given(
    sizes=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=6), min_size=2, max_size=6),
    seed=st.integers(),
    data=st.data(),
)
def test_a_batch_is_p_labels_and_k_items_of_each_from_different_blocks(
    sizes: Sequence[Sequence[int]], seed: int, data: st.DataObject
) -> None:
    """``sizes[label][block]`` items; each label is given a second item where it had one."""
    rows = [
        (label, f"{label}:{block}")
        for label, blocks in enumerate(sizes)
        for block, size in enumerate(blocks)
        for _ in range(size + (sum(blocks) == 1))
    ]
    labels, blocks = [label for label, _ in rows], [block for _, block in rows]
    classes = data.draw(st.integers(2, len(sizes)))
    per_class = data.draw(st.integers(2, min(Counter(labels).values())))
    found = LabelBatchSampler(labels, classes=classes, per_class=per_class, batches=3, seed=seed, blocks=blocks)
    for batch in found:
        assert len(set(batch)) == len(batch) == classes * per_class
        of_labels = Counter(labels[index] for index in batch)
        assert set(of_labels.values()) == {per_class}
        assert len(of_labels) == classes
        for label in of_labels:
            from_blocks = {blocks[index] for index in batch if labels[index] == label}
            assert len(from_blocks) == min(per_class, len(sizes[label]))


def test_without_blocks_every_item_stands_alone() -> None:
    assert all(len(set(batch)) == 12 for batch in sampler(blocks=None))


def test_every_item_is_drawn_sooner_or_later() -> None:
    found = sampler(classes=7, batches=200)
    assert {index for batch in found for index in batch} == set(range(len(LABELS)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 8}, r"classes: expected 2 to 7 \(the labels in the data\), got 8"),
        ({"classes": 1}, "classes: expected 2 to 7 .*, got 1"),
        ({"per_class": 13}, r"texts_per_class: expected 2 to 12 \(the texts of the smallest label\), got 13"),
        ({"per_class": 1}, "texts_per_class: expected 2 to 12 .*, got 1"),
        ({"world_size": 5}, "multiple of the 5 ranks, got 4 x 3 = 12; change one of them or --devices"),
    ],
)
def test_batches_that_cannot_be_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler(**settings)


@pytest.mark.parametrize("settings", [{"rank": 1}, {"rank": -1}, {"start_batch": 7}])
def test_ranks_and_batches_outside_the_run_cannot_be(settings: dict[str, object]) -> None:
    with pytest.raises(AssertionError):
        sampler(**settings)
