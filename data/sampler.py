"""P x K batches: P labels, K texts of each, as supervised contrastive learning wants them.

A batch is a pure function of (seed, epoch, number of the batch), and a rank's share of it of (rank, world size): nothing is
carried from one batch to the next, so a run resumes at any batch, and results do not depend on the number of devices.
"""

import random
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence

from torch.utils.data import Sampler


class LabelBatchSampler(Sampler[list[int]]):
    """Yields, for one rank, its share of each global batch: ``classes * per_class / world_size`` indices.

    Args:
        labels: The label of every item.
        classes: P, labels a global batch.
        per_class: K, items of each of them, all different.
        batches: Global batches an epoch.
        seed: Of the whole order.
        blocks: Items of one block overlap; the K items of a label come from K blocks while it has that many.
        rank, world_size: Whose share.
        start_batch: The first batch to yield (for a resume in the middle of an epoch); later epochs start at 0. The length
            stays that of the whole epoch.

    Raises:
        ValueError: P above the number of labels, K above the smallest label, or P x K not divisible by ``world_size``.
    """

    def __init__(
        self,
        labels: Sequence[int],
        *,
        classes: int,
        per_class: int,
        batches: int,
        seed: int = 0,
        blocks: Sequence[Hashable] | None = None,
        rank: int = 0,
        world_size: int = 1,
        start_batch: int = 0,
    ) -> None:
        self.members: dict[int, dict[Hashable, list[int]]] = defaultdict(lambda: defaultdict(list))
        for index, label in enumerate(labels):
            self.members[label][index if blocks is None else blocks[index]].append(index)
        self.classes, self.per_class, self.batches, self.seed = classes, per_class, batches, seed
        self.rank, self.world_size, self.epoch, self.start_batch = rank, world_size, 0, start_batch
        self._check()

    def _check(self) -> None:
        assert 0 <= self.rank < self.world_size, f"rank {self.rank} of {self.world_size}"
        assert 0 <= self.start_batch <= self.batches, f"batch {self.start_batch} of {self.batches}"
        if not 2 <= self.classes <= len(self.members):
            raise ValueError(f"classes: expected 2 to {len(self.members)} (the labels in the data), got {self.classes}")
        smallest = min(sum(map(len, blocks.values())) for blocks in self.members.values())
        if not 2 <= self.per_class <= smallest:
            raise ValueError(
                f"texts_per_class: expected 2 to {smallest} (the texts of the smallest label), got {self.per_class}"
            )
        size = self.classes * self.per_class
        if size % self.world_size:
            raise ValueError(
                f"batch: expected classes x texts_per_class to be a multiple of the {self.world_size} ranks, "
                f"got {self.classes} x {self.per_class} = {size}; change one of them or --devices"
            )

    def set_epoch(self, epoch: int, *, start_batch: int = 0) -> None:
        """Choose the epoch that the next iteration yields, and the batch it starts at."""
        self.epoch, self.start_batch = epoch, start_batch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        for number in range(self.start_batch, self.batches):
            yield self.global_batch(number)[self.rank :: self.world_size]

    def global_batch(self, number: int) -> list[int]:
        """All P x K indices of batch ``number`` of the current epoch, grouped by label."""
        rng = random.Random(f"{self.seed} {self.epoch} {number}")
        labels = rng.sample(sorted(self.members), self.classes)
        return [index for label in labels for index in self._draw(rng, self.members[label])]

    def _draw(self, rng: random.Random, blocks: dict[Hashable, list[int]]) -> list[int]:
        """K different items, from as many blocks as there are."""
        names = list(blocks)
        drawn = [rng.choice(blocks[name]) for name in rng.sample(names, min(self.per_class, len(names)))]
        if len(drawn) < self.per_class:
            taken = set(drawn)
            rest = [index for members in blocks.values() for index in members if index not in taken]
            drawn += rng.sample(rest, self.per_class - len(drawn))
        return drawn
