"""PartBudget: how many tokens a rank embeds at once, as asked for or as the device's memory allows."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from lightning_app.presentation import announce
from models.memory_limit import smaller_budget
from models.part_cutting import Features, part_shape, within_budget


class PartBudget:
    """The most tokens of a part. It is halved when the device has no memory for the parts, and stays so.

    Args:
        tokens: to begin with; None: no limit, and no part is computed again.
    """

    def __init__(self, tokens: int | None) -> None:
        self.tokens = tokens
        self._shapes: list[tuple[int, int]] = []

    def cut(self, parts: Sequence[Features]) -> list[Features]:
        """Parts within the budget; remembers what it gave, which is what `halve` halves."""
        small = within_budget(parts, self.tokens)
        self._shapes = [part_shape(part) for part in small]
        return small

    def halve(self) -> None:
        """Take half of the largest part that `cut` gave last.

        Raises:
            ValueError: see `smaller_budget`.
        """
        self.tokens = smaller_budget(self._shapes, self.tokens)

    def until_it_fits(self, attempt: Callable[[], Any], *, before: Callable[[], None] = lambda: None) -> Any:
        """What ``attempt()`` returns, tried with half the tokens for as long as it finds no memory.

        Args:
            attempt: cuts its parts with this budget each time.
            before: called before it is tried again, to undo what was left half done.

        Raises:
            ValueError: see `smaller_budget`.
        """
        while True:
            try:
                return attempt()
            except torch.OutOfMemoryError:
                pass  # what failed is held by the error, and freed after this line
            self.halve()
            before()
            release_memory()

    @contextmanager
    def announced(self) -> Iterator[None]:
        """Say at the end of the block what the budget is from here on, if it has changed."""
        first = self.tokens
        yield
        if self.tokens != first:
            announce(
                f"out of memory: {self.tokens} tokens are embedded at once from here on, and computed again in the backward "
                f"pass; batch and loss stay as they are (--token-budget {self.tokens} from the start saves the attempts)"
            )

    def refusal(self, rank: int) -> ValueError:
        """The end of a run of several ranks, which cannot agree on another budget in the middle of a step."""
        texts, tokens = max(self._shapes, key=lambda shape: shape[0] * shape[1])
        try:
            smaller = smaller_budget(self._shapes, self.tokens)
        except ValueError as error:
            return error
        return ValueError(
            f"--token-budget: expected memory for {texts * tokens} tokens at once on rank {rank}, found too little; give "
            f"--token-budget {smaller}, with --resume to go on from the last state"
        )


def release_memory() -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
