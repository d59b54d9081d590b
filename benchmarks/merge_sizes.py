"""Our SLERP of two at three sizes, against a plain read of the inputs and write of the output.

From the smallest to the largest, the seconds that are added for each GB of inputs and output leave start-up out.
Peak memory is that of the whole process, under a small budget.
"""

import shutil
from dataclasses import replace

from benchmarks.checkpoints import Size, write_checkpoint
from benchmarks.commands import THREADS, Job, Run, in_turn, median, ours, plain, remove
from benchmarks.result import Check, Result, Settings, command_of

PART = "merge_sizes"
SIZES = (Size(7, 37984), Size(28, 151936), Size(112, 151936))
TINY = (Size(1, 64), Size(2, 8192))
BUDGET, BUDGET_FLAG = 256 * 2**20, "256MiB"
ROOM = 4.5
"""Two inputs, the outputs of both commands, and a margin; a checkpoint is 1."""
LARGEST_SLOPE = 1.5
LARGEST_EXCESS = 300.0
"""Megabytes (10**6 bytes)."""


def measure(settings: Settings) -> list[Result]:
    """Return a result for each size that the disk has room for, and one for the seconds a GB.

    Raises:
        ValueError: there is no room for two sizes.
    """
    wanted = TINY if settings.quick else SIZES
    sizes = [size for size in wanted if _fits(size, settings)]
    if len(sizes) < 2:
        raise ValueError(
            f"--scratch {settings.scratch}: expected {ROOM * SIZES[1].bytes / 1e9:.1f} GB of free space, got less; "
            "name a folder on another disk, or leave that part out"
        )
    results = [_measure_one(size, settings) for size in sizes]
    slope = _slope(results)
    left_out = [f"{size.bytes / 1e9:.2g}" for size in wanted if size not in sizes]
    if left_out:
        slope = replace(slope, note=f"{slope.note} Left out for lack of disk: {', '.join(left_out)} GB each.".lstrip())
    return [*results, slope]


def _fits(size: Size, settings: Settings) -> bool:
    return shutil.disk_usage(settings.scratch).free > ROOM * size.bytes


def _measure_one(size: Size, settings: Settings) -> Result:
    inputs = [write_checkpoint(settings.scratch / f"input-{number}", number, size) for number in range(2)]
    jobs = (
        ours("slerp", inputs, settings.scratch / "ours", "--memory", BUDGET_FLAG),
        plain(inputs, settings.scratch / "plain"),
    )
    our_runs, plain_runs = in_turn(jobs, settings.repeats, quick=settings.quick)
    _check_sizes(jobs)
    for path in (*inputs, *(job.output for job in jobs)):
        remove(path)
    one, other = median(our_runs), median(plain_runs)
    excess = (_peak(our_runs) - BUDGET) / 1e6
    return Result(
        part=PART,
        name=f"slerp of 2, {size.bytes / 1e9:.2g} GB each, --memory {BUDGET_FLAG}",
        peer_is="plain read and write",
        ours=one,
        peer=other,
        ratio=one / other,
        seconds=[[each.seconds for each in runs] for runs in (our_runs, plain_runs)],
        checks=[Check(what="peak memory above the budget", value=excess, goal=LARGEST_EXCESS, unit="MB")],
        repeats=settings.repeats,
        threads=THREADS,
        command=command_of(PART),
        details={
            "bytes_of_inputs_and_output": 3 * size.bytes,
            "budget_bytes": BUDGET,
            "peak_bytes": _peak(our_runs),
            "peer_peak_bytes": _peak(plain_runs),
        },
    )


def _check_sizes(jobs: tuple[Job, Job]) -> None:
    written = (jobs[0].output / "model.safetensors").stat().st_size, jobs[1].output.stat().st_size
    assert abs(written[0] - written[1]) < 2**20, f"the commands wrote other amounts: {written}"


def _peak(runs: list[Run]) -> int:
    return max(one.peak_bytes for one in runs)


def _slope(results: list[Result]) -> Result:
    first, last = results[0], results[-1]
    gigabytes = (_bytes(last) - _bytes(first)) / 1e9
    one, other = (last.ours - first.ours) / gigabytes, (last.peer - first.peer) / gigabytes
    told = one > 0 and other > 0
    return Result(
        part=PART,
        name=f"slerp of 2, each GB from {_bytes(first) / 1e9:.2g} to {_bytes(last) / 1e9:.2g} GB read and written",
        peer_is="plain read and write",
        ours=one,
        peer=other,
        ratio=one / other if told else None,
        goal=LARGEST_SLOPE,
        unit="s/GB",
        repeats=first.repeats,
        threads=THREADS,
        command=command_of(PART),
        note="" if told else "The seconds a GB are not told: noise is larger than the difference between the sizes.",
    )


def _bytes(result: Result) -> int:
    return int((result.details or {})["bytes_of_inputs_and_output"])
