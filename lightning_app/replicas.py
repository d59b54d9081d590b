"""The replicas of a run's last stage: the same start, other batches, rates and texts; the ingredients of its merges."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import TYPE_CHECKING

from data.training_texts import TrainingTexts
from lightning_app.config import DEFAULT_MERGES, MergeName, TrainConfig

if TYPE_CHECKING:
    from lightning_app.stages import RunData, StageData


def check_replicas(config: TrainConfig) -> None:
    """Raise ValueError for settings of replicas that are out of range, do nothing, or do not go with others."""
    if config.replicas < 1:
        raise ValueError(f"--replicas: expected at least 1, got {config.replicas}; 1 trains the last stage once")
    if not 0 < config.replica_fraction <= 1:
        raise ValueError(
            f"--replica-fraction: expected a share in (0, 1], got {config.replica_fraction}; 1 gives every replica all texts"
        )
    for rate in config.replica_learning_rates:
        if not 0 < rate < math.inf:
            raise ValueError(
                f"--replica-learning-rates: expected positive numbers, got {rate}; leave it out for the stage's own rate"
            )
    if config.replicas == 1:
        for flag, given in (
            ("--replica-learning-rates", config.replica_learning_rates),
            ("--replica-fraction", config.replica_fraction < 1),
        ):
            if given:
                raise ValueError(
                    f"{flag}: expected --replicas of 2 or more beside it, got 1; add --replicas or drop it"
                )
    elif config.cross_fit:
        raise ValueError(
            f"--cross-fit {config.cross_fit}: expected one last stage to fit again, got --replicas {config.replicas}; drop one"
        )


def merges_of(config: TrainConfig) -> tuple[MergeName, ...]:
    """The merges that are asked for: with replicas, the default ones and the search over the replicas."""
    searches = config.replicas > 1 and config.merges == DEFAULT_MERGES
    return (*config.merges, "search") if searches else config.merges


def with_replicas(data: RunData, config: TrainConfig) -> RunData:
    """The run's data with the last stage as often as there are replicas."""
    if config.replicas == 1:
        return data
    *stages, last = data.stages
    return replace(data, stages=(*stages, *(replica_of(last, number, config) for number in range(config.replicas))))


def replica_of(stage: StageData, number: int, config: TrainConfig) -> StageData:
    """One replica of a stage: a function of the run's seed and the replica's number alone.

    Args:
        stage: As it would be trained once, P and K settled.
        number: From 0; the replica's name counts from 1.
        config: Of the run: seed, learning rates (taken in turn) and the share of the texts.

    Returns:
        The stage under the name NUMBER-NAME-REPLICA.

    References:
        Wortsman et al. 2022, Model soups, https://arxiv.org/abs/2203.05482; Breiman 1996, Bagging Predictors,
        https://doi.org/10.1007/BF00058655 (here: drawn without replacement).
    """
    rates = config.replica_learning_rates or (stage.stage.learning_rate,)
    least = stage.classes if stage.data.in_pairs else stage.per_class
    seed = random.Random(f"{config.seed} replica {number}").getrandbits(62)
    return replace(
        stage,
        name=f"{stage.name}-{number + 1}",
        stage=replace(stage.stage, learning_rate=rates[number % len(rates)]),
        data=share_of(stage.data, config.replica_fraction, least=least, seed=seed),
        replica=number + 1,
        seed=seed,
    )


def share_of(data: TrainingTexts, fraction: float, *, least: int, seed: int) -> TrainingTexts:
    """A share of the texts of every label, or of the pairs, drawn without replacement, in their order.

    Args:
        data: n texts.
        fraction: In (0, 1]; rounded up to whole texts (pairs).
        least: At least so many of each label (so many pairs), where there are as many.
        seed: Of the draw.

    Example:
        >>> data = TrainingTexts(texts=list("abcdefgh"), labels=[0, 1] * 4, blocks=range(8))
        >>> share_of(data, 0.5, least=2, seed=0).labels.count(1)
        2
    """
    if fraction == 1:
        return data
    rng = random.Random(f"{seed} texts")
    members: dict[int, list[int]] = {}
    for place, label in enumerate(data.labels):
        members.setdefault(label, []).append(place)
    if data.in_pairs:
        kept = _drawn(rng, sorted(members), fraction, least)
        chosen = [place for label in kept for place in members[label]]
    else:
        chosen = [place for label in sorted(members) for place in _drawn(rng, members[label], fraction, least)]
    return data.part(sorted(chosen))


def _drawn(rng: random.Random, among: list[int], fraction: float, least: int) -> list[int]:
    wanted = max(least, math.ceil(fraction * len(among)))
    return rng.sample(among, min(wanted, len(among)))


def replica_note(stage: StageData, config: TrainConfig) -> str | None:
    """What sets a replica apart, for its row of the report; None for a stage that is trained once."""
    if stage.replica is None:
        return None
    seen = f", {len(stage.data.texts)} texts" if config.replica_fraction < 1 else ""
    return f"replica {stage.replica} of {config.replicas}, learning rate {stage.stage.learning_rate:g}{seen}"
