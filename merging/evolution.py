"""A small evolution strategy for a few numbers in [0, 1], when a score costs seconds and has no gradient.

The (1+1)-CMA-ES: one parent, one child, a covariance learnt from the steps that succeeded.  It only asks which of two
candidates is better, so it takes the order of ``front.rank`` as it is, the floor included, and it makes progress from the
first child on, where a population would spend a small budget on its first generations.

Reference: Igel, Suttorp and Hansen 2006, A computational efficient covariance matrix update and a (1+1)-CMA for evolution
strategies, GECCO.

Dimensions: d numbers that are searched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float64
from torch import Tensor

from merging.front import Candidate, Parameters, rank

TARGET = 2 / 11
"""Share of successful children at which the step size stays as it is."""
SMALLEST_STEP = 1e-3
"""Step size at which the search has converged."""


@dataclass
class Steps:
    """The distribution of the next step: a size and a factor of the covariance, adapted to what succeeded."""

    factor: Float64[Tensor, "d d"]
    size: float
    path: Float64[Tensor, " d"] = field(init=False)
    """Fading sum of the successful steps."""
    success: float = TARGET

    def __post_init__(self) -> None:
        self.path = torch.zeros_like(self.factor[0])

    def learn(self, step: Float64[Tensor, " d"], *, succeeded: bool) -> None:
        """Adapt to a child that beat its parent or did not; ``step`` is in units of ``size``."""
        d = len(step)
        self.success += (float(succeeded) - self.success) / 12
        self.size *= math.exp((self.success - TARGET) / (1 - TARGET) / (1 + d / 2))
        if not succeeded:
            return
        fading, rate = 2 / (d + 2), 2 / (d * d + 6)
        self.path = (1 - fading) * self.path + math.sqrt(fading * (2 - fading)) * step
        whitened = torch.linalg.solve(self.factor, self.path)
        square = float(whitened @ whitened)
        if square > 0:
            gain = (math.sqrt(1 + rate * square / (1 - rate)) - 1) / square
            self.factor = math.sqrt(1 - rate) * (self.factor + gain * self.path.outer(whitened))


def evolve(
    start: Candidate,
    position: Sequence[float],
    place: Callable[[Sequence[float]], Parameters],
    *,
    floor: float,
    step: float,
    seed: int,
) -> Generator[Parameters, Candidate, Candidate]:
    """Propose parameters around the best so far until the steps have become small; returns the best.

    Args:
        start: a candidate that was scored.
        position: its d numbers in [0, 1].
        place: numbers to parameters.
        floor: the least retention.
        step: standard deviation of the first steps.
        seed: of the steps; they depend on it and on the scores alone.
    """
    generator = torch.Generator().manual_seed(seed)
    parent, at = start, torch.tensor(position, dtype=torch.float64)
    steps = Steps(torch.eye(len(at), dtype=torch.float64), step)
    while steps.size > SMALLEST_STEP:
        drawn = steps.factor @ torch.randn(len(at), generator=generator, dtype=torch.float64)
        there = (at + steps.size * drawn).clamp(0, 1)
        child = yield place(there.tolist())
        # Not >=: against a border of the box a child can be its parent, and steps would grow without end.
        succeeded = rank(child, floor) > rank(parent, floor)
        steps.learn(drawn, succeeded=succeeded)
        if succeeded:
            parent, at = child, there
    return parent
