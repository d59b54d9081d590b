"""What ``python train.py`` calls: a plan without the imports of a run, or the run."""

from typing import Any

from lightning_app.config import TrainConfig


def train(config: TrainConfig) -> dict[str, Any]:
    """Plan a run with ``--plan`` (`plan_run`), else carry it out (`lightning_app.run.train`).

    Raises:
        ValueError: as these do.
    """
    if config.plan:
        from lightning_app.train_plan import plan_run

        return plan_run(config)
    from lightning_app.run import train as carry_out

    return carry_out(config)
