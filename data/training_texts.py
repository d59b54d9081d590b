"""TrainingTexts: what a stage trains on; it knows nothing of Lightning, so that a plan needs none."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrainingTexts:
    """What a stage trains on: texts, their labels, and the block that each text was cut from."""

    texts: Sequence[str]
    labels: Sequence[int]
    blocks: Sequence[Hashable]
