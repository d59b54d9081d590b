"""What the selection suite says of the model of a run as it is: it chooses epochs and replicas, and no report prints it."""

import math
from collections.abc import Mapping

from torch import Tensor

from callbacks.stage_checkpoint import floored_score
from evaluation.clustering import silhouette_score
from evaluation.retention import debiased_cka
from lightning_app.preparation import Run


def selection_base(run: Run) -> Mapping[str, Tensor]:
    """The base's embeddings of the selection suite, (n, d), under its name; nothing where there is no such suite.

    The first call embeds with the model as it is: before any stage is trained or loaded.
    """
    if run.data.selection is None:
        return {}
    if run.selection_base is None:
        run.selection_base = run.encode(run.data.selection.texts)
    return {"selection": run.selection_base}


def selection_score(run: Run, *, floor: float) -> float:
    """How well the model as it is separates the selection suite, see `floored_score`; nan where that is undefined.

    Args:
        run: Whose model is measured.
        floor: Least debiased CKA to the base, on the same suite.
    """
    if run.data.selection is None:
        return math.nan
    found = run.encode(run.data.selection.texts)
    return floored_score(
        silhouette_score(found, run.data.selection.labels),
        debiased_cka(found, selection_base(run)["selection"]),
        floor,
    )


def first_best(scores: Mapping[str, float]) -> str:
    """The name of the largest score, the first of equals; nan counts as less than any number."""
    return max(scores, key=lambda name: -math.inf if math.isnan(scores[name]) else scores[name])
