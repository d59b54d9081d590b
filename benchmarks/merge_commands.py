"""Whole commands, ours and mergekit's, on checkpoints with the shapes of Qwen3-0.6B in bfloat16 (1.2 GB each).

Commands take turns; start-up is part of both, hashing and fsync of ours.  Then the outputs are compared, and once
more with ours under ``--compat mergekit``, which tells another formula from another rounding.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import mergekit
from benchmarks.checkpoints import Size, write_checkpoint
from benchmarks.commands import THREADS, in_turn, median, ours, remove, require_space, run
from benchmarks.differences import LastPlaces, last_places
from benchmarks.result import Check, Result, Settings, command_of

PART = "merge_commands"
CASES = (("slerp", 2, 0.35), ("linear", 2, 0.35), ("karcher", 4, 0.1))
"""Method, number of inputs, and the largest ratio of the wall times."""
LARGEST_LINEAR = 1.0
"""Units in the last place: both round one sum of products once."""


def measure(settings: Settings) -> list[Result]:
    """Return a result for each method."""
    size = Size(layers=1, vocabulary=64) if settings.quick else Size()
    require_space(settings.scratch, 7 * size.bytes)
    inputs = [write_checkpoint(settings.scratch / f"input-{number}", number, size) for number in range(4)]
    return [_measure_one(method, inputs[:count], goal, settings, size) for method, count, goal in CASES]


def _measure_one(method: str, inputs: Sequence[Path], goal: float, settings: Settings, size: Size) -> Result:
    mine = ours(method, inputs, settings.scratch / "ours")
    theirs = mergekit.peers(mergekit.recipe(method, inputs), settings.scratch / "mergekit")
    our_runs, peer_runs = in_turn([mine, theirs], settings.repeats, quick=settings.quick)
    one, other = median(our_runs), median(peer_runs)
    apart = last_places(mine.output, theirs.output, inputs)
    remove(mine.output)
    compat = ours(method, inputs, settings.scratch / "compat", "--compat", "mergekit")
    run(compat)
    under_compat = last_places(compat.output, theirs.output, inputs)
    remove(compat.output)
    remove(theirs.output)
    what = "largest difference in units of the last place"
    return Result(
        part=PART,
        name=f"{method} of {len(inputs)}, {size.bytes / 1e9:.2g} GB each",
        peer_is=f"mergekit {mergekit.VERSION}",
        ours=one,
        peer=other,
        ratio=one / other,
        seconds=[[each.seconds for each in runs] for runs in (our_runs, peer_runs)],
        goal=goal,
        checks=[Check(what=what, value=apart.of_result, goal=LARGEST_LINEAR)] if method == "linear" else [],
        repeats=settings.repeats,
        threads=THREADS,
        command=command_of(PART),
        details={
            "peak_bytes": max(each.peak_bytes for each in our_runs),
            "peer_peak_bytes": max(each.peak_bytes for each in peer_runs),
            "difference": asdict(apart),
            "difference_under_compat": asdict(under_compat),
        },
        note=_note(method, apart, under_compat),
    )


def _note(method: str, apart: LastPlaces, under_compat: LastPlaces) -> str:
    if apart.share == 0:
        return f"{method}: the outputs are equal in every element."
    return (
        f"{method}: ours and mergekit's {_words(apart)}. With ours under `--compat mergekit` they "
        f"{_words(under_compat)}. {FORMULAS.get(method, '')}".rstrip()
    )


def _words(found: LastPlaces) -> str:
    if found.share == 0:
        return "are equal in every element"
    return (
        f"differ in {100 * found.share:.2g} % of the elements: by at most {found.of_result:.3g} in units of the last place "
        f"of the result, and {found.of_inputs:.3g} in those of the largest number that takes part (inputs that cancel "
        "tell the two apart)"
    )


FORMULAS = {
    "slerp": "mergekit applies the coefficients to the tensors at their own lengths and is linear above a cosine of "
    "0.9995; ours gives the direction on the arc the interpolated length, at every angle.",
    "karcher": "mergekit iterates on the tensors in bfloat16 and rounds each step; ours iterates on coefficients in "
    "float64 and rounds once. mergekit stops at a step below 1e-5: after the first for checkpoints as near as these, "
    "after up to ten for others, so the ratio depends on that distance.",
}
"""Where mergekit's formula is another."""
