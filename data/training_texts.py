"""TrainingTexts: what a stage trains on; it knows nothing of Lightning, so that a plan needs none."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Item(NamedTuple):
    """One text of a batch."""

    text: str
    label: int
    place: int = 0
    """Its place in the training texts."""
    role: int = 0
    """0: an anchor and a positive to the others of its label; 1: a hard negative, which is no anchor."""


@dataclass(frozen=True, kw_only=True)
class TrainingTexts:
    """What a stage trains on: texts, their labels, and the block that each text was cut from."""

    texts: Sequence[str]
    labels: Sequence[int]
    blocks: Sequence[Hashable]

    def items(self) -> list[Item]:
        """Every text as an item of a batch."""
        return [Item(text, label, i) for i, (text, label) in enumerate(zip(self.texts, self.labels, strict=True))]
