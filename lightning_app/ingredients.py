"""What a run's merges are made of: its stages, or the replicas of the last one and the best of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_app.merges import Ingredients
from lightning_app.preparation import Run
from lightning_app.presentation import announce
from lightning_app.selecting import first_best


def ingredients_of(run: Run, base: Path, stages: Sequence[Path], scores: Mapping[str, float]) -> Ingredients:
    """What merges are made of: the replicas, if there are any, and the one that the selection suite prefers.

    Args:
        run: Whose stages are trained.
        base: Folder of the base's weights.
        stages: Folders of all stages, in the order of ``run.data.stages``.
        scores: Name of a replica -> `selection_score` of it; nan where there is no selection suite.
    """
    replicas = [path for path, stage in zip(stages, run.data.stages, strict=True) if stage.replica is not None]
    last = stages[-1]
    if replicas:
        best = first_best({path.name: scores[path.name] for path in replicas})
        last = next(path for path in replicas if path.name == best)
        announce(
            f"replica {best}: taken for the last stage{', by the suite selection' * (run.data.selection is not None)}"
        )
    return Ingredients(
        base=base,
        stages=replicas or stages,
        last=last,
        selection=run.data.selection,
        floor=run.data.stages[-1].stage.retention_floor,
        replicas=bool(replicas),
        seed=run.config.seed,
        device=str(run.device),
    )


def one_path(run: Run, stages: Sequence[Path], last: Path) -> list[Path]:
    """The stages that lead to ``last``, without its sister replicas."""
    pairs = zip(stages, run.data.stages, strict=True)
    return [path for path, stage in pairs if stage.replica is None or path == last]
