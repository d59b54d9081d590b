"""One run of either side of the training benchmark, from the same plan."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sentence_transformers import SentenceTransformer

from benchmarks.training_case import SHARES, TrainingCase, batches_of, check_fill, fresh, settings_of, texts_of
from benchmarks.training_ours import Steps, train_ours
from benchmarks.training_peer import train_peer
from data.training_texts import TrainingTexts


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Texts and batches of a run, the same on both sides."""

    case: TrainingCase
    data: TrainingTexts
    batches: list[list[int]]
    per_class: int


def plan_of(case: TrainingCase, *, per_class: int, steps: int) -> Plan:
    """The batches of ``steps`` steps.

    Raises:
        ValueError: whole batches of uneven texts are not filled as they should be.
    """
    embedder = fresh(case)
    data = texts_of(case, embedder, few=per_class < len(SHARES))
    batches = batches_of(data, per_class=per_class, steps=steps)
    if case.texts == "uneven" and per_class == len(SHARES) and case.model != "tiny":
        check_fill(embedder, data, batches)
    return Plan(case=case, data=data, batches=batches, per_class=per_class)


def run_ours(embedder: SentenceTransformer, plan: Plan, folder: Path) -> Steps:
    """Our run of the plan."""
    config = settings_of(plan.case, folder)
    return train_ours(embedder, plan.data, folder, config=config, per_class=plan.per_class, steps=len(plan.batches))


def run_peer(embedder: SentenceTransformer, plan: Plan, folder: Path) -> Steps:
    """The peer's."""
    return train_peer(embedder, plan.data, plan.batches, folder, precision=plan.case.precision)


SIDES: Mapping[str, Callable[[SentenceTransformer, Plan, Path], Steps]] = {"ours": run_ours, "peer": run_peer}
