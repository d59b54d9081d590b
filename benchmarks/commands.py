"""Whole commands: run in turn, timed, with the peak memory of each."""

import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
THREADS = 2

LAUNCHER = """
import os, sys, time
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
begin = time.perf_counter()
process = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet)
_, status, usage = os.wait4(process, 0)
print(time.perf_counter() - begin, usage.ru_maxrss, os.waitstatus_to_exitcode(status))
"""
"""Starts a command from a small process: Linux counts the memory of the process that starts it into a command's peak."""

PLAIN = """
import os, sys
*inputs, output = sys.argv[1:]
piece = memoryview(bytearray(2**20))
target = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
for place, path in enumerate(inputs):
    source = os.open(path, os.O_RDONLY)
    while count := os.readv(source, [piece]):
        if place == 0:
            os.write(target, piece[:count])
os.fsync(target)
"""
"""Reads every input and writes as much as one of them, with fsync."""


@dataclass(frozen=True)
class Job:
    """A command and what it writes, which is removed before each run."""

    command: Sequence[str]
    output: Path


@dataclass(frozen=True)
class Run:
    """One command that was run to its end."""

    seconds: float
    peak_bytes: int


def ours(method: str, inputs: Sequence[Path], output: Path, *flags: str) -> Job:
    """Return our merge of ``inputs``."""
    models = map(str, inputs)
    command = [sys.executable, "merge.py", "--method", method, "--inputs", *models, "--output", str(output)]
    return Job([*command, "--threads", str(THREADS), *flags], output)


def plain(inputs: Sequence[Path], output: Path) -> Job:
    """Return the command that only reads and writes."""
    files = [str(path / "model.safetensors") for path in inputs]
    return Job([sys.executable, "-c", PLAIN, *files, str(output)], output)


def run(job: Job) -> Run:
    """Run a command and say what it took.

    Raises:
        RuntimeError: it failed; the message ends with what it wrote to stderr.
    """
    remove(job.output)
    told = {"OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", LAUNCHER, *job.command],
        cwd=ROOT,
        env=os.environ | told,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds, kilobytes, status = done.stdout.split() if done.returncode == 0 else ("0", "0", str(done.returncode))
    if status != "0":
        raise RuntimeError(f"{' '.join(job.command)}: exit code {status}: {done.stderr[-2000:]}")
    return Run(float(seconds), int(kilobytes) * 1024)


def in_turn(jobs: Sequence[Job], repeats: int, *, quick: bool = False) -> list[list[Run]]:
    """Run commands in turn ``repeats`` times; returns the runs of each.

    Unless it is to be quick, a round before is not counted, and each command starts with nothing left to write to
    the disk by others.
    """
    rounds: list[list[Run]] = []
    for _ in range(repeats + (not quick)):
        rounds.append([])
        for job in jobs:
            remove(job.output)
            if not quick:
                os.sync()
            rounds[-1].append(run(job))
    return [list(runs) for runs in zip(*rounds[-repeats:], strict=True)]


def median(runs: Sequence[Run]) -> float:
    """Return the median of the seconds."""
    return statistics.median(one.seconds for one in runs)


def remove(output: Path) -> None:
    """Remove a folder or file that a command wrote, if there is one."""
    if output.is_dir():
        shutil.rmtree(output)
    else:
        output.unlink(missing_ok=True)


def require_space(folder: Path, needed: int) -> None:
    """Refuse to start what would fill the disk."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"--scratch {folder}: expected {needed / 1e9:.1f} GB of free space, got {free / 1e9:.1f}; "
            "name a folder on another disk, or leave that part out"
        )
