"""Settings of recipes that are out of range or do nothing: the retention floor, averages, replicas."""

from lightning_app.config import TrainConfig
from lightning_app.replicas import check_replicas

EMA_DECAY = TrainConfig().ema_decay


def check_recipe(config: TrainConfig) -> None:
    """Raise ValueError for what no recipe can do, before anything is read."""
    for i, stage in enumerate(config.stages):
        if not 0 <= stage.retention_floor <= 1:
            raise ValueError(
                f"--stages.{i}.retention-floor: expected a number in [0, 1], got {stage.retention_floor}; "
                "0 keeps whatever separates best"
            )
    if not 0 <= config.ema_decay < 1:
        raise ValueError(f"--ema-decay: expected a number in [0, 1), got {config.ema_decay}; 0.98 is the default")
    if config.average != "ema" and config.ema_decay != EMA_DECAY:
        raise ValueError(
            f"--ema-decay: expected --average ema beside it, got {config.average}; add it or drop --ema-decay"
        )
    # text of one's own has one stage unless it is told otherwise
    stages = 1 if config.data is not None and config.stages == TrainConfig().stages else len(config.stages)
    if "search" in config.merges and stages < 2 and config.replicas < 2:
        raise ValueError(
            "--merges search: expected two models at least to search between, got one stage and no replicas; add --replicas, or "
            "leave search out"
        )
    check_replicas(config)


def check_selects(config: TrainConfig, *, selects: bool) -> None:
    """Raise ValueError for what chooses by the selection suite where there is none.

    Args:
        config: Of the run.
        selects: Whether there is a selection suite.
    """
    if selects:
        return
    for i, stage in enumerate(config.stages):
        if stage.retention_floor > 0:
            raise ValueError(
                f"--stages.{i}.retention-floor: expected texts enough for a selection suite, on which retention is measured, "
                "got none held back; give --data at least two labels with more texts, or drop the floor"
            )
    if "search" in config.merges:
        raise ValueError(
            "--merges search: expected texts enough for a selection suite, which chooses, got none held back; give --data at "
            "least two labels with more texts, or leave search out"
        )
