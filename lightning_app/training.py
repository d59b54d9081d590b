"""What ``python train.py`` calls: a plan without the imports of a run, or the run."""

from typing import Any

from lightning_app.config import TrainConfig
from lightning_app.stop_signal import SIGNALS


def train(config: TrainConfig) -> dict[str, Any]:
    """Plan a run with ``--plan`` (`plan_run`), else carry it out (`lightning_app.run.train`).

    Raises:
        ValueError: as these do.
        Stopped: a signal ended the run.
    """
    if config.plan:
        from lightning_app.train_plan import plan_run

        return plan_run(config)
    from lightning_app.run import train as carry_out

    with SIGNALS.handled(f"finished stages in {config.output} are kept; go on with --resume"):
        return carry_out(config)
