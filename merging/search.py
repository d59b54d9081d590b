"""The search for the best coefficients: most separation among the merges that retain enough.

What is searched is known here as numbers only.  A strategy is a generator: it proposes parameters and is sent the
candidate they became; ``explore`` scores what it proposes, each place once, until the evaluations are spent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from merging.evolution import evolve
from merging.front import DECIMALS, Candidate, Parameters, rank
from merging.methods import Method, find_method
from merging.request import settings_of
from merging.schedule import Settings

Strategy = Literal["auto", "grid", "greedy", "evolve"]
STRATEGIES: tuple[Strategy, ...] = ("auto", "grid", "greedy", "evolve")

Score = Callable[[Mapping[str, Tensor]], tuple[float, float]]
"""The tensors of a merge -> (separation, retention)."""

Evaluate = Callable[[Parameters], tuple[float, float]]
Watch = Callable[[Candidate], None]
"""Called with every candidate when it has been scored."""

Proposals = Generator[Parameters, Candidate, Candidate]
"""Yields parameters, is sent the candidate they became, and returns the best it saw."""

POINTS = 11
"""Of the first pass over t."""
COARSE_POINTS = 5
"""Of the pass over t before a search by layers."""
TOLERANCE = 1e-3
"""Of t, when one number is searched."""
KNOTS = 4
"""Of the gradient over the layers, at most."""
STEP = 0.2
"""Standard deviation of the first steps of a search by layers."""
GOLDEN = (math.sqrt(5) - 1) / 2
PATIENCE = 25
"""Proposals for each evaluation that is paid for: a strategy that only repeats itself is ended."""


@runtime_checkable
class Merger(Protocol):
    """Models that can be merged again and again: ``merging.measured.Measured``."""

    @property
    def inputs(self) -> int: ...

    @property
    def layers(self) -> int: ...

    def merge(self, *, settings: Settings) -> Mapping[str, Tensor]: ...


def search(
    measured: Merger,
    score: Score,
    *,
    method: str,
    retention: float,
    strategy: Strategy = "auto",
    evaluations: int = 40,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
) -> tuple[Candidate, ...]:
    """Look for the merge with the largest separation that keeps at least ``retention``.

    Two inputs are searched along t: a grid, then golden section around its best point (``grid``), or a gradient over the
    layers (``evolve``).  More are searched by weights that sum to 1: the greedy soup, a lattice, then the same evolution.
    The inputs by themselves are always among the candidates.  Weights sum to 1 for every method; the length of a sum of
    task vectors is not searched, ``scale`` tells it.

    Args:
        measured: the models, opened once.
        score: tensors -> (separation, retention), both best when large.
        method: a name of ``METHODS`` that is told by ``t`` or by weights.
        retention: the floor, in [0, 1].
        strategy: ``grid``; ``greedy``, Wortsman et al.'s soup; ``evolve``, by layers for two inputs; ``auto``: ``grid`` for
            two inputs, ``greedy`` and then ``grid`` for more.
        evaluations: how many candidates are scored at most; one place is never scored twice.
        seed: of ``evolve``, also where ``grid`` ends with it.  The result depends on it and on the scores alone.
        options: what else the method is told, by names of ``merge_checkpoints``: ``scale``, ``density`` ...
        watch: called with every candidate.

    Returns:
        All candidates in the order they were scored: for :func:`merging.front.choose` and :func:`merging.front.front`.

    Raises:
        ValueError: a setting out of range, a method or strategy that does not fit, or a score that is not finite.
    """
    row = find_method(method)
    refuse_search(row, measured.inputs, retention=retention, strategy=strategy, evaluations=evaluations)

    def evaluate(parameters: Parameters) -> tuple[float, float]:
        told = {**(options or {}), **parameters.arguments(row)}
        return score(measured.merge(settings=settings_of(None, **told, inputs=measured.inputs)))

    proposals = proposals_of(strategy, measured.inputs, measured.layers, retention, evaluations, seed)
    return explore(proposals, evaluate, evaluations=evaluations, watch=watch)


def refuse_search(row: Method, inputs: int, *, retention: float, strategy: str, evaluations: int) -> None:
    """Raise ValueError for a search that cannot be carried out, before anything is opened."""
    if not row.takes & {"t", "weights"}:
        raise ValueError(
            f"--search: expected a method told by --t or --weights, got {row.name}, which has neither; use slerp or karcher"
        )
    if inputs < 2:
        raise ValueError(f"--search: expected at least 2 models to choose between, got {inputs}; add --inputs")
    if not 0 <= retention <= 1:
        raise ValueError(f"--retention: expected a number in [0, 1], got {retention}; 0.9 is a common choice")
    if strategy not in STRATEGIES:
        raise ValueError(f"--strategy: expected one of {', '.join(STRATEGIES)}, got {strategy!r}; choose one of them")
    if strategy == "greedy" and "weights" not in row.takes:
        raise ValueError(
            f"--strategy greedy: expected a method told by --weights, got {row.name}; use linear or karcher"
        )
    least = COARSE_POINTS if inputs == 2 else inputs + 1
    if evaluations < least:
        raise ValueError(f"--evaluations: expected at least {least} for {inputs} models, got {evaluations}; raise it")


def explore(
    proposals: Proposals, evaluate: Evaluate, *, evaluations: int, watch: Watch | None = None
) -> tuple[Candidate, ...]:
    """Score what is proposed until the proposals end or the evaluations are spent; a place scored before is free.

    Raises:
        ValueError: a score that is not finite; the message says where and which.
    """
    scored: dict[Parameters, Candidate] = {}
    candidate: Candidate | None = None
    for _ in range(PATIENCE * evaluations):
        try:
            # A generator that has just begun can only be sent None.
            parameters = next(proposals) if candidate is None else proposals.send(candidate)
        except StopIteration:
            break
        known = scored.get(parameters)
        if known is None:
            if len(scored) == evaluations:
                break
            known = scored[parameters] = _scored(parameters, evaluate)
            if watch is not None:
                watch(known)
        candidate = known
    return tuple(scored.values())


def proposals_of(strategy: Strategy, inputs: int, layers: int, floor: float, evaluations: int, seed: int) -> Proposals:
    """The strategy by its name, fitted to the number of inputs and layers."""
    if strategy == "greedy":
        return greedy_soup(inputs, floor)
    if inputs == 2:
        return grid(floor, evaluations) if strategy != "evolve" else evolve_layers(layers, floor, seed)
    if strategy == "auto":
        return _one_after_the_other(
            greedy_soup(inputs, floor), lattice(inputs, floor, evaluations - 2 * inputs, seed), floor
        )
    return lattice(inputs, floor, evaluations if strategy == "grid" else 0, seed)


def greedy_soup(inputs: int, floor: float) -> Proposals:
    """Add the models to a uniform soup, best separation first, each one if the soup does not get worse.

    Worse is meant as in :func:`merging.front.rank`: less separation above the floor, or below the floor.

    Reference: Wortsman et al. 2022, Model soups, arXiv:2203.05482, Recipe 1.
    """
    alone = []
    for index in range(inputs):
        alone.append((yield _soup([index], inputs)))
    order = sorted(range(inputs), key=lambda index: -alone[index].separation)
    members, best = [order[0]], alone[order[0]]
    for index in order[1:]:
        candidate = yield _soup([*members, index], inputs)
        if rank(candidate, floor)[:2] >= rank(best, floor)[:2]:
            members, best = [*members, index], candidate
    return best


def grid(floor: float, evaluations: int) -> Proposals:
    """Evenly spaced t from 0 to 1, then golden section between the neighbours of the best of them."""
    points = min(POINTS, max(COARSE_POINTS, evaluations // 2))
    places, best = yield from _line(points, floor)
    refined = yield from golden_section(places[max(best[0] - 1, 0)], places[min(best[0] + 1, points - 1)], floor)
    return max(best[1], refined, key=lambda candidate: rank(candidate, floor))


def golden_section(low: float, high: float, floor: float, tolerance: float = TOLERANCE) -> Proposals:
    """Narrow [low, high] around the best t, right to ``tolerance`` where there is one peak inside.

    Only the order of candidates counts, so a floor that cuts the interval is a peak like any other.

    Reference: Kiefer 1953, Sequential minimax search for a maximum, Proc. AMS 4(3).
    """
    inner = [high - GOLDEN * (high - low), low + GOLDEN * (high - low)]
    left = yield _at(inner[0])
    right = yield _at(inner[1])
    while high - low > tolerance:
        if rank(left, floor) >= rank(right, floor):
            high, inner[1], right = inner[1], inner[0], left
            inner[0] = high - GOLDEN * (high - low)
            left = yield _at(inner[0])
        else:
            low, inner[0], left = inner[0], inner[1], right
            inner[1] = low + GOLDEN * (high - low)
            right = yield _at(inner[1])
    return max(left, right, key=lambda candidate: rank(candidate, floor))


def lattice(inputs: int, floor: float, evaluations: int, seed: int) -> Proposals:
    """The models alone, their soup, all weights that are multiples of a step, then evolution from the best of them.

    The step is the smallest whose lattice takes two thirds of ``evaluations`` at most.
    """
    divisions = 1
    while math.comb(divisions + inputs, inputs - 1) <= evaluations * 2 // 3:
        divisions += 1
    whole = tuple(range(inputs))
    best = yield _soup(whole, inputs)
    for index in whole:
        best = max(best, (yield _soup([index], inputs)), key=lambda candidate: rank(candidate, floor))
    for parts in _compositions(divisions, inputs):
        here = yield Parameters(weights=tuple(part / divisions for part in parts))
        best = max(best, here, key=lambda candidate: rank(candidate, floor))
    step = min(STEP, 1 / (2 * divisions))
    return (yield from evolve(best, best.parameters.weights, _on_simplex, floor=floor, step=step, seed=seed))


def evolve_layers(layers: int, floor: float, seed: int) -> Proposals:
    """A coarse grid of t, then a gradient over the layers that starts from the best of it."""
    _, (_, start) = yield from _line(COARSE_POINTS, floor)
    knots = max(1, min(KNOTS, layers))
    position = start.parameters.t * knots
    return (yield from evolve(start, position, _over_layers, floor=floor, step=STEP, seed=seed))


def _line(points: int, floor: float) -> Generator[Parameters, Candidate, tuple[list[float], tuple[int, Candidate]]]:
    """Score evenly spaced t; returns them, and the place and candidate of the best."""
    places = [index / (points - 1) for index in range(points)]
    found = []
    for place in places:
        found.append((yield _at(place)))
    best = max(range(points), key=lambda index: rank(found[index], floor))
    return places, (best, found[best])


def _one_after_the_other(first: Proposals, second: Proposals, floor: float) -> Proposals:
    results = []
    for proposals in (first, second):
        results.append((yield from proposals))
    return max(results, key=lambda candidate: rank(candidate, floor))


def _scored(parameters: Parameters, evaluate: Evaluate) -> Candidate:
    separation, retention = map(float, evaluate(parameters))
    if not (math.isfinite(separation) and math.isfinite(retention)):
        raise ValueError(
            f"score of {parameters}: expected finite numbers, got separation {separation} and retention {retention}; "
            "look at the embeddings of that merge, which may have collapsed"
        )
    return Candidate(parameters, separation, retention)


def _soup(members: Sequence[int], inputs: int) -> Parameters:
    return Parameters(weights=tuple(1 / len(members) if index in members else 0.0 for index in range(inputs)))


def _at(t: float) -> Parameters:
    return Parameters(t=(round(t, DECIMALS),))


def _over_layers(position: Sequence[float]) -> Parameters:
    knots = tuple(round(value, DECIMALS) for value in position)
    return Parameters(t=knots[:1] if len(set(knots)) == 1 else knots)


def _on_simplex(position: Sequence[float]) -> Parameters:
    total = math.fsum(position)
    if total == 0:
        return _soup(range(len(position)), len(position))
    return Parameters(weights=tuple(round(value / total, DECIMALS) for value in position))


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Every way to write ``total`` as an ordered sum of ``parts`` whole numbers, 0 included."""
    if parts == 1:
        yield (total,)
        return
    for first in range(total, -1, -1):
        for rest in _compositions(total - first, parts - 1):
            yield (first, *rest)
