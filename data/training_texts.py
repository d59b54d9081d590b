"""TrainingTexts: what a stage trains on; it knows nothing of Lightning, so that a plan needs none."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Item(NamedTuple):
    """One text of a batch."""

    text: str
    label: int
    place: int = 0
    """Its place in the training texts; of a text that is there more than once, the first."""
    role: int = 0
    """Of a pair (the label is its number): 0 the anchor, 1 the positive, 2 and above hard negatives. Otherwise 0: every text is
    an anchor, and a positive to the others of its label."""


@dataclass(frozen=True, kw_only=True)
class TrainingTexts:
    """What a stage trains on: texts, their labels, the block that each text was cut from, and, of pairs, each text's role."""

    texts: Sequence[str]
    labels: Sequence[int]
    blocks: Sequence[Hashable]
    roles: Sequence[int] | None = None

    @property
    def in_pairs(self) -> bool:
        """Whether labels are numbers of pairs, whose texts always come together."""
        return self.roles is not None

    def items(self) -> list[Item]:
        """Every text as an item of a batch."""
        first: dict[str, int] = {}
        roles = self.roles if self.roles is not None else [0] * len(self.texts)
        return [
            Item(text, label, first.setdefault(text, i), role)
            for i, (text, label, role) in enumerate(zip(self.texts, self.labels, roles, strict=True))
        ]

    def part(self, places: Sequence[int]) -> "TrainingTexts":
        """The texts at some places, in their order."""
        return TrainingTexts(
            texts=[self.texts[i] for i in places],
            labels=[self.labels[i] for i in places],
            blocks=[self.blocks[i] for i in places],
            roles=None if self.roles is None else [self.roles[i] for i in places],
        )
