"""Folds of the paper's suite: an adapted model is measured on windows that it did not see, and trained on the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from data.suites import paper_suite
from data.training_texts import TrainingTexts

FOLDS: dict[int, Sequence[tuple[int, ...]]] = {2: ((0, 2), (1, 3)), 6: tuple(combinations(range(4), 2))}
"""Number of folds -> the windows of every family that each fold holds out."""


@dataclass(frozen=True, kw_only=True)
class Fold:
    """One way to part the paper's 24 texts."""

    name: str
    """The windows held out, from 1, such as ``1-3``."""
    training: TrainingTexts
    """The other windows of every family."""
    trained_on: tuple[int, ...]
    """Indices of ``training`` in the suite."""
    held_out: tuple[int, ...]
    """Indices of the texts to measure on."""


def paper_folds(folds: int = 2) -> tuple[Fold, ...]:
    """The paper's suite in folds that hold out two of the four windows of each family.

    Two windows a family are the fewest that have a silhouette, and the fewest that can be contrasted; so there are 2 folds
    (windows 1 and 3, then 2 and 4: every text is held out once) or all 6 (every text is held out three times).

    Args:
        folds: 2 or 6.

    Raises:
        ValueError: another number.

    Example:
        >>> [(fold.name, len(fold.training.texts), fold.held_out[:4]) for fold in paper_folds(2)]
        [('1-3', 12, (0, 2, 4, 6)), ('2-4', 12, (1, 3, 5, 7))]
    """
    if isinstance(folds, bool) or folds not in FOLDS:
        raise ValueError(
            f"--cross-fit: expected 2 or 6 folds, got {folds!r}; each holds out two of the four windows of a family, since "
            "one alone has no silhouette"
        )
    return tuple(_fold(windows) for windows in FOLDS[folds])


def _fold(windows: tuple[int, ...]) -> Fold:
    suite = paper_suite()
    numbers = suite.nuisances["window"]
    held_out = tuple(i for i, number in enumerate(numbers) if int(number) in windows)
    trained_on = tuple(i for i, number in enumerate(numbers) if int(number) not in windows)
    return Fold(
        name="-".join(str(1 + window) for window in windows),
        training=TrainingTexts(
            texts=[suite.texts[i] for i in trained_on],
            labels=[suite.labels[i] for i in trained_on],
            blocks=[suite.blocks[i] for i in trained_on],
        ),
        trained_on=trained_on,
        held_out=held_out,
    )
