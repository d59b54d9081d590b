"""The merges of a run: which checkpoints meet, by which method, and under which name they are reported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from merging.engine import Complete, merge_checkpoints


@dataclass(frozen=True, kw_only=True)
class RunMerge:
    """One merge of a run's checkpoints. ``of``: all stages, the ends (base and last stage), or the last stage alone."""

    of: str
    method: str
    family: str
    t: float | None = None
    note: str


RUN_MERGES: Mapping[str, RunMerge] = MappingProxyType(
    {
        "soup": RunMerge(of="stages", method="linear", family="soup", note="uniform soup of the stages"),
        "karcher": RunMerge(
            of="stages", method="karcher", family="slerp", note="spherical mean of the stages' task vectors"
        ),
        "slerp": RunMerge(
            of="ends",
            method="slerp",
            family="slerp",
            t=0.5,
            note="half-way along the arc from the base to the last stage, in weight space",
        ),
        "linear": RunMerge(
            of="ends",
            method="linear",
            family="control",
            t=0.5,
            note="half-way along the line from the base to the last stage: the control of slerp",
        ),
        "last": RunMerge(
            of="last", method="passthrough", family="lora", note="the last stage folded into its base, a whole folder"
        ),
    }
)


def merge_run(
    name: str, *, base: Path, stages: Sequence[Path], output: Path, complete: Complete | None = None
) -> dict[str, Any] | None:
    """Carry out one of RUN_MERGES into ``output``; None where there are too few stages for it.

    ``complete`` may change what surrounds the weights, as in ``merge_checkpoints``.

    Returns:
        The content of merge.json.
    """
    row = RUN_MERGES[name]
    inputs = {"stages": list(stages), "ends": [base, stages[-1]], "last": [stages[-1]]}[row.of]
    if len(inputs) < 2 and row.of != "last":
        return None
    return merge_checkpoints(inputs, output, method=row.method, base=base, t=row.t, overwrite=True, complete=complete)


def note_of(name: str, report: Mapping[str, Any]) -> str:
    """What the merge did, with the figures that show when an arc did nothing: for the row of the report."""
    row, summary = RUN_MERGES[name], report["summary"]
    if row.of == "last":
        return row.note
    parts = [row.note]
    if summary["mean_angle_degrees"] is not None:
        parts.append(f"mean angle {summary['mean_angle_degrees']:.1f} degrees")
    for key, other in (("distance_to_linear", "the line at the same weights"), ("distance_to_soup", "the plain soup")):
        if row.method != "linear" and summary[key] is not None:
            parts.append(f"{100 * summary[key]:.2g} % from {other}")
    return ", ".join(parts)
