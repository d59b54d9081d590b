"""Our training steps against those of sentence-transformers' own trainer, in turn: time, losses and memory.

Both train the same LoRA layers of the same model on the same batches, with the same loss, optimiser, schedule, clipping and
precision, and without dropout.  A step lasts from the end of the one before to its own end, so reading, padding, logging and
the callbacks are in it.  Ours runs as a stage does, with its guard, its bar and its event file; the peer logs and saves
nothing.  Not counted on either side: loading, the first steps, and what comes after the last.
"""

import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.result import Check, Result, Settings, command_of
from benchmarks.training_case import FILL, SHARES, TrainingCase, fresh, texts_of_a_stage
from benchmarks.training_memory import training_growth
from benchmarks.training_ours import Steps
from benchmarks.training_runs import SIDES, Plan, plan_of
from lightning_app.config import SIX_STAGE

__all__ = ["COMPARED", "FILL", "PART", "measure"]

PART = "training"
PEER = "sentence-transformers' trainer"
WARM_UP, COUNTED = 1, 3
"""Steps of a run that are timed, after those that are not."""
COMPARED = 50
"""Steps over which losses are compared, of short batches."""
LARGEST_DIFFERENCE = 1e-4
"""Between the losses of both sides."""
STAGE_STEPS = SIX_STAGE.epochs * SIX_STAGE.steps_per_epoch
"""Steps of a stage over which the time that fills the cache is spread."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A case, and what is asked of it."""

    case: TrainingCase
    goal: float | None = None
    compares: bool = False
    """Whether its losses are compared over COMPARED steps too."""
    weighs: bool = False
    """Whether its memory is measured."""
    per_class: int = len(SHARES)
    """Texts of each of the six labels in a batch."""


ROWS = (
    Row(case=TrainingCase(model="all-minilm"), goal=1 / 2, compares=True, weighs=True),
    Row(case=TrainingCase(model="decoder-16"), goal=1 / 2, compares=True, weighs=True),
    Row(case=TrainingCase(model="all-minilm", adapt_top=2)),
    Row(case=TrainingCase(model="decoder-16", adapt_top=4), goal=1 / 4, compares=True, weighs=True),
    Row(case=TrainingCase(model="all-minilm", texts="windows"), per_class=4),
    Row(case=TrainingCase(model="decoder-16", precision="bf16-mixed")),
)
QUICK_ROWS = (
    Row(case=TrainingCase(model="tiny", longest=64), compares=True),
    Row(case=TrainingCase(model="tiny", longest=64, adapt_top=1)),
)


def measure(settings: Settings) -> list[Result]:
    """Return the results of this part."""
    rows = QUICK_ROWS if settings.quick else ROWS
    # what either side imports with its first step is no part of a step
    _both(plan_of(QUICK_ROWS[0].case, per_class=2, steps=2), settings.scratch)
    return [result for row in rows for result in compare_row(row, settings)]


def compare_row(row: Row, settings: Settings) -> list[Result]:
    """The comparison of one case; where states are kept a second one, in which the time that computes them is counted."""
    plan = plan_of(row.case, per_class=row.per_class, steps=WARM_UP + (1 if settings.quick else COUNTED))
    runs = [_both(plan, settings.scratch) for _ in range(settings.repeats)]
    differences = [difference(run) for run in runs]
    checks = []
    if row.compares:
        short = plan_of(row.case, per_class=2, steps=4 if settings.quick else COMPARED)
        found = max(difference(_both(short, settings.scratch)), *differences)
        what = f"largest difference in loss over {len(short.batches)} steps"
        checks = [Check(what=what, value=found, goal=LARGEST_DIFFERENCE)]
    details: dict[str, Any] = {"texts_a_step": len(plan.batches[0]), "largest_difference_in_loss": max(differences)}
    if row.weighs and not settings.quick:
        for side, key in (("ours", "peak_bytes"), ("peer", "peer_peak_bytes")):
            details[key] = training_growth(side, row.case, per_class=row.per_class, steps=2)
    seconds = {side: [statistics.median(run[side].seconds(warm_up=WARM_UP)) for run in runs] for side in SIDES}
    ours, peer = (statistics.median(seconds[side]) for side in ("ours", "peer"))
    result = Result(
        part=PART,
        name=row.case.name,
        peer_is=PEER,
        ours=ours,
        peer=peer,
        ratio=ours / peer,
        repeats=settings.repeats,
        threads=torch.get_num_threads(),
        command=command_of(PART),
        seconds=[seconds["ours"], seconds["peer"]],
        unit="s a step",
        goal=row.goal,
        checks=checks,
        details=details,
    )
    filling = [run["ours"].seconds_a_kept_text for run in runs]
    return [result] if row.case.adapt_top is None else [result, _with_filling(result, filling)]


def difference(run: Mapping[str, Steps]) -> float:
    """The largest difference of the losses of one step.

    >>> difference({"ours": Steps(ends=[1, 2], losses=[3.0, 2.5]), "peer": Steps(ends=[1, 3], losses=[3.0, 2.75])})
    0.25
    """
    pairs = zip(run["ours"].losses, run["peer"].losses, strict=True)
    return max(abs(ours - peer) for ours, peer in pairs)


def _both(plan: Plan, scratch: Path) -> dict[str, Steps]:
    """A run of each side from the same weights; what they leave on the disk is removed."""
    found = {}
    for side, run in SIDES.items():
        folder = scratch / side
        found[side] = run(fresh(plan.case), plan, folder)
        shutil.rmtree(folder, ignore_errors=True)
    return found


def _with_filling(result: Result, seconds_a_text: Sequence[float]) -> Result:
    """The same, with the states of every text that a stage draws computed once, and spread over its steps."""
    texts = texts_of_a_stage()
    filling = statistics.median(seconds_a_text) * texts
    added = filling / STAGE_STEPS
    ours = result.ours + added
    return replace(
        result,
        name=f"{result.name}, states computed in this run",
        ours=ours,
        ratio=ours / result.peer,
        seconds=[[each + added for each in result.seconds[0]], result.seconds[1]],
        goal=None,
        checks=[],
        details={"texts_a_step": (result.details or {})["texts_a_step"], "seconds_to_compute_states": filling},
        note=(
            f"{result.name}: the states below the trained layers lie on the disk before the first step. Computed in the run "
            f"itself, for the {texts} texts that a stage of {STAGE_STEPS} steps draws, were they as long as these, they take "
            f"{filling:.1f} s, here spread over its steps; what comes after it reads them."
        ),
    )
