"""The merges of a run: which checkpoints meet, by which method, and under which name they are reported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from data.suites import Suite
from lightning_app.searching import search_merge
from merging.engine import Complete, merge_checkpoints

EVALUATIONS = 40
"""Candidates that ``search`` scores at most."""


@dataclass(frozen=True, kw_only=True)
class RunMerge:
    """One merge of a run's checkpoints. ``of``: all ingredients, the ends (base and last stage), or the last stage alone.

    In the note, ``{all}`` and ``{last}`` stand for what the run has of both.
    """

    of: str
    method: str
    family: str
    t: float | None = None
    searches: bool = False
    note: str


RUN_MERGES: Mapping[str, RunMerge] = MappingProxyType(
    {
        "soup": RunMerge(of="stages", method="linear", family="soup", note="uniform soup of the {all}"),
        "karcher": RunMerge(
            of="stages", method="karcher", family="slerp", note="spherical mean of the {all}' task vectors"
        ),
        "slerp": RunMerge(
            of="ends",
            method="slerp",
            family="slerp",
            t=0.5,
            note="half-way along the arc from the base to {last}, in weight space",
        ),
        "linear": RunMerge(
            of="ends",
            method="linear",
            family="control",
            t=0.5,
            note="half-way along the line from the base to {last}: the control of slerp",
        ),
        "last": RunMerge(
            of="last", method="passthrough", family="lora", note="{last} folded into its base, a whole folder"
        ),
        "search": RunMerge(
            of="stages", method="linear", family="soup", searches=True, note="soup of the {all} with weights searched"
        ),
    }
)


@dataclass(frozen=True, kw_only=True)
class Ingredients:
    """What the merges of a run are made of."""

    base: Path
    """Folder of the base's weights."""
    stages: Sequence[Path]
    """What soups are made of: all stages, or the replicas of the last one."""
    last: Path
    """The other end from the base: the last stage, or the replica that the selection suite prefers."""
    selection: Suite | None = None
    """What chooses the weights of a search, and where it measures retention; it is in no report."""
    floor: float = 0.0
    """Least retention that a search may choose, in [0, 1]."""
    replicas: bool = False
    """Whether the stages are replicas."""
    seed: int = 0
    """Of the search."""
    device: str = "cpu"
    """Where its candidates are embedded."""


def merge_run(
    name: str, ingredients: Ingredients, output: Path, *, complete: Complete | None = None
) -> dict[str, Any] | None:
    """Carry out one of RUN_MERGES into ``output``; None where there are too few stages for it, or no suite to search by.

    ``complete`` may change what surrounds the weights, as in ``merge_checkpoints``. With a floor, a search may take the base in
    as well, by which every floor can be reached.

    Returns:
        The content of merge.json.
    """
    row, base, selection = RUN_MERGES[name], ingredients.base, ingredients.selection
    stages, last = list(ingredients.stages), ingredients.last
    inputs = {"stages": stages, "ends": [base, last], "last": [last]}[row.of]
    if len(inputs) < 2 and row.of != "last":
        return None
    if not row.searches:
        return merge_checkpoints(
            inputs, output, method=row.method, base=base, t=row.t, overwrite=True, complete=complete
        )
    if selection is None:
        return None
    inputs = [base, *stages] if ingredients.floor > 0 else stages
    return search_merge(
        inputs,
        output,
        method=row.method,
        base=base,
        retention=ingredients.floor,
        evaluations=max(EVALUATIONS, len(inputs) + 1),
        seed=ingredients.seed,
        device=ingredients.device,
        write={"overwrite": True},
        complete=complete,
        suites=(selection, selection),
    )


def note_of(name: str, report: Mapping[str, Any], ingredients: Ingredients) -> str:
    """What the merge did, with the figures that show when an arc did nothing: for the row of the report."""
    row, summary = RUN_MERGES[name], report["summary"]
    last = (
        f"{ingredients.last.name}, the best replica by the suite selection"
        if ingredients.replicas
        else "the last stage"
    )
    if ingredients.replicas and ingredients.selection is None:
        last = f"{ingredients.last.name}, the first replica, as no suite was held back to choose by"
    parts = [row.note.format(all="replicas" if ingredients.replicas else "stages", last=last)]
    if row.of == "last":
        return parts[0]
    if row.searches:
        parts += _found(report["search"], with_base=ingredients.floor > 0)
    if summary["mean_angle_degrees"] is not None:
        parts.append(f"mean angle {summary['mean_angle_degrees']:.1f} degrees")
    for key, other in (("distance_to_linear", "the line at the same weights"), ("distance_to_soup", "the plain soup")):
        if row.method != "linear" and summary[key] is not None:
            parts.append(f"{100 * summary[key]:.2g} % from {other}")
    return ", ".join(parts)


def _found(search: Mapping[str, Any], *, with_base: bool) -> list[str]:
    """What a search chose, among how many, and by what."""
    chosen = search["chosen"]
    weights = chosen["weights"] if "weights" in chosen else [1 - chosen["t"][0], chosen["t"][0]]
    shown = " ".join(f"{weight:.3g}" for weight in weights)
    return [
        f"{shown} of {'base and ' if with_base else ''}all in their order",
        f"chosen by the silhouette of the suite selection among {search['evaluations']} candidates",
        f"with a CKA to the base of {search['floor']:g} or more on the same suite",
    ]
