"""What a search finds: candidates with their two scores, the Pareto front among them, and the one to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from merging.methods import Method

DECIMALS = 4
"""Of positions and weights that a search makes up: what is written down is exactly what was scored."""
ROUNDING = 1e-9
"""Of retention: a kernel alignment of a model with itself is 1 but for so much."""


@dataclass(frozen=True)
class Parameters:
    """Where a candidate lies: by ``t`` between two inputs, or by one weight an input; one of the two is empty."""

    t: tuple[float, ...] = ()
    """Knots of a gradient over the layers; a single one holds everywhere.  0 is the base if it is an input, else the first."""
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        assert bool(self.t) != bool(self.weights), "a candidate lies on a line or on a simplex"

    def arguments(self, method: Method) -> dict[str, Any]:
        """The arguments of a merge that stands there; a method told by weights gets 1 - t and t.

        >>> from merging.methods import METHODS
        >>> Parameters(t=(0.25,)).arguments(METHODS["karcher"])
        {'weights': [0.75, 0.25]}
        >>> Parameters(t=(0.0, 0.5)).arguments(METHODS["slerp"])
        {'t': [0.0, 0.5]}
        """
        if self.weights:
            return {"weights": list(self.weights)}
        if "t" in method.takes:
            return {"t": _schedule(self.t)}
        return {"weights": [_schedule([round(1 - t, 12) for t in self.t]), _schedule(self.t)]}

    @property
    def is_end(self) -> bool:
        """Whether it is one of the inputs by itself."""
        return self.t in ((0.0,), (1.0,)) or sum(weight != 0 for weight in self.weights) == 1

    def __str__(self) -> str:
        shown = ", ".join(f"{value:.{DECIMALS}g}" for value in self.t or self.weights)
        return f"t = {shown}" if self.t else f"weights = {shown}"


@dataclass(frozen=True)
class Candidate:
    """A merge that was scored."""

    parameters: Parameters
    separation: float
    """What is to be large."""
    retention: float
    """What must not fall below the floor."""


def meets(candidate: Candidate, floor: float) -> bool:
    """Whether enough is retained; rounding is forgiven, so that the base itself meets the floor 1."""
    return candidate.retention >= floor - ROUNDING


def rank(candidate: Candidate, floor: float) -> tuple[bool, float, float]:
    """What candidates are compared by: the floor first; above it separation, below it retention.

    >>> here, there = Candidate(Parameters(t=(0.2,)), 0.1, 0.95), Candidate(Parameters(t=(0.8,)), 0.5, 0.6)
    >>> rank(here, 0.9) > rank(there, 0.9), rank(here, 0.5) > rank(there, 0.5)
    (True, False)
    """
    if meets(candidate, floor):
        return True, candidate.separation, candidate.retention
    return False, candidate.retention, candidate.separation


def front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The Pareto front by increasing retention: those that no other beats in one score and equals in the other.

    >>> scores = [(0.1, 0.9), (0.5, 0.5), (0.4, 0.4)]
    >>> [c.separation for c in front([Candidate(Parameters(t=(0.5,)), *score) for score in scores])]
    [0.5, 0.1]
    """
    kept: list[Candidate] = []
    best: Candidate | None = None
    for candidate in sorted(candidates, key=lambda each: (-each.retention, -each.separation)):
        ties = best is not None and (candidate.separation, candidate.retention) == (best.separation, best.retention)
        if best is None or candidate.separation > best.separation:
            best = candidate
        elif not ties:
            continue
        kept.append(candidate)
    return kept[::-1]


def choose(candidates: Sequence[Candidate], floor: float) -> Candidate:
    """The candidate of largest separation whose retention is at least ``floor``; the first of equals.

    Raises:
        ValueError: none reaches the floor; the message names the one that keeps most.
    """
    best = max(candidates, key=lambda candidate: rank(candidate, floor))
    if not meets(best, floor):
        raise ValueError(
            f"--retention: expected a merge that keeps at least {floor:g}, got at most {best.retention:.4f}, at "
            f"{best.parameters} with separation {best.separation:.4f}, among {len(candidates)} candidates; lower "
            "--retention to that or add the base to --inputs"
        )
    return best


def _schedule(knots: Sequence[float]) -> float | list[float]:
    return knots[0] if len(knots) == 1 else list(knots)
