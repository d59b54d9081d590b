"""What a benchmark found: seconds of ours and of the peer, and numbers that were asked to stay below a limit."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from storage.json_file import read_json, write_json


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a part is run."""

    scratch: Path
    """An empty folder for checkpoints and results."""
    repeats: int = 5
    """Counted runs of each side."""
    quick: bool = False
    """Tiny sizes: shows that the program works, says nothing about speed."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """A number that was asked to be at most ``goal``."""

    what: str
    value: float
    goal: float
    unit: str = ""

    @property
    def met(self) -> bool:
        return self.value <= self.goal


@dataclass(frozen=True, kw_only=True)
class Result:
    """One comparison.  A ratio below 1 means that ours is faster."""

    part: str
    name: str
    peer_is: str
    ours: float
    """Median of the repeats."""
    peer: float
    ratio: float | None
    """None where it has no meaning; the note says why."""
    repeats: int
    threads: int
    command: str
    """What makes this entry again."""
    seconds: Sequence[Sequence[float]] = ()
    """Each counted run of ours, then of the peer."""
    unit: str = "s"
    goal: float | None = None
    """Largest ratio that was asked for."""
    checks: Sequence[Check] = ()
    """Other numbers with a limit."""
    details: Mapping[str, Any] | None = None
    """Other numbers without one."""
    note: str = ""

    @property
    def spread(self) -> float:
        """The slowest run over the fastest, of the side where that is larger; 1 where nothing is known."""
        return max((max(side) / min(side) for side in self.seconds if side), default=1.0)

    @property
    def goals(self) -> list[Check]:
        """All checks, that of the ratio first."""
        if self.goal is None or self.ratio is None:
            return list(self.checks)
        return [Check(what="ratio", value=self.ratio, goal=self.goal), *self.checks]


def compare(
    part: str,
    name: str,
    peer_is: str,
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    *,
    repeats: int,
    threads: int,
) -> Result:
    """Time two calls in turn, after one run each that is not counted."""
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    for turn in range(repeats + 1):
        for which, work in (("ours", ours), ("peer", peer)):
            begin = time.perf_counter()
            work()
            if turn:
                seconds[which].append(time.perf_counter() - begin)
    one, two = (statistics.median(seconds[which]) for which in ("ours", "peer"))
    return Result(
        part=part,
        name=name,
        peer_is=peer_is,
        ours=one,
        peer=two,
        ratio=one / two,
        seconds=[seconds["ours"], seconds["peer"]],
        repeats=repeats,
        threads=threads,
        command=command_of(part),
    )


def command_of(part: str) -> str:
    """Return the command that runs one part."""
    return f"python -m benchmarks {part}"


def write_results(path: Path, results: Iterable[Result]) -> None:
    """Write the results as a JSON list."""
    write_json(path, [asdict(result) for result in results])


def read_results(path: Path) -> list[Result]:
    """Read what :func:`write_results` wrote; an absent file holds none.

    Raises:
        ValueError: the file is no list of results.
    """
    if not path.exists():
        return []
    try:
        return [Result(**{**row, "checks": [Check(**check) for check in row["checks"]]}) for row in read_json(path)]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected results of this program, got another layout ({error}); delete the file, run every part"
        ) from None
