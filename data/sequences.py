"""Windows: which terms of a family become a text, and for which purpose.

Every purpose has index blocks of its own, with gaps, so that no term position is read for two purposes:

* the six families: positions 0..199 are the paper's; then segments of 240 positions:
  training 0..109 | gap | `large` 120..169 | gap | `selection` 180..229 | gap
* the broad families: segments of 180 positions: training 0..109 | gap | `broad` 120..169 | gap;
  runs in turn: two for training, one for `broad`
* the held-out families: segments of 60 positions: `held-out` 0..49 | gap
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from data.families import Family, find_family

Purpose = Literal["training", "paper", "large", "selection", "broad", "held-out"]

SEPARATOR = ", "
PAPER_TERMS = 200
"""The paper's windows are the first 200 terms of each of the six, cut in four."""
SIX_FIRST, SIX_SEGMENT, SIX_SEGMENTS = 240, 240, 36
BROAD_SEGMENT, BROAD_SEGMENTS, BROAD_RUNS = 180, 8, 24
HELD_OUT_SEGMENT, HELD_OUT_SEGMENTS = 60, 12
TRAINING_BLOCK = 110


@dataclass(frozen=True, kw_only=True)
class Window:
    """Consecutive terms of one family. ``block`` names the index block: windows of one block overlap or adjoin."""

    family: str
    block: str
    start: int
    terms: tuple[int, ...]

    @property
    def text(self) -> str:
        """The terms as the paper writes them.

        >>> Window(family="even", block="even:paper:0", start=0, terms=(2, 4, 6)).text
        '2, 4, 6'
        """
        return SEPARATOR.join(map(str, self.terms))


def windows(family: str, purpose: Purpose) -> list[Window]:
    """Every window of ``family`` for ``purpose``, in order.

    Raises:
        ValueError: unknown family, or a purpose that the family's role does not serve.
    """
    row = find_family(family)
    found = list(_windows(row, purpose))
    if not found:
        raise ValueError(f"family {family!r} has the role {row.role!r} and gives no windows for {purpose!r}")
    return found


def _windows(family: Family, purpose: Purpose) -> Iterator[Window]:
    if family.run is not None:
        yield from _run_windows(family, purpose)
        return
    for start, stop in _blocks(family, purpose):
        block = f"{family.name}:{purpose}:{start}"
        for at in range(start, stop - family.window + 1):
            yield Window(family=family.name, block=block, start=at, terms=family.terms(at, at + family.window))


def _blocks(family: Family, purpose: Purpose) -> Sequence[tuple[int, int]]:
    """Position ranges [start, stop) of a line. Only training blocks are longer than one window."""
    match family.role, purpose:
        case "six", "paper":
            return [(at, at + family.window) for at in range(0, PAPER_TERMS, family.window)]
        case "six", ("training" | "large" | "selection"):
            offset = {"training": 0, "large": 120, "selection": 180}[purpose]
            length = TRAINING_BLOCK if purpose == "training" else family.window
            starts = [SIX_FIRST + SIX_SEGMENT * k + offset for k in range(SIX_SEGMENTS)]
            return [(at, at + length) for at in starts]
        case "broad", ("training" | "broad"):
            offset, length = (0, TRAINING_BLOCK) if purpose == "training" else (120, family.window)
            return [(BROAD_SEGMENT * k + offset, BROAD_SEGMENT * k + offset + length) for k in range(BROAD_SEGMENTS)]
        case "held-out", "held-out":
            return [(HELD_OUT_SEGMENT * k, HELD_OUT_SEGMENT * k + family.window) for k in range(HELD_OUT_SEGMENTS)]
    return []


def _run_windows(family: Family, purpose: Purpose) -> Iterator[Window]:
    assert family.run is not None
    if purpose not in ("training", "broad") or family.role != "broad":
        return
    for j in range(BROAD_RUNS):
        if (j % 3 == 2) == (purpose == "broad"):
            terms = tuple(family.run(j, family.window))
            yield Window(family=family.name, block=f"{family.name}:run:{j}", start=0, terms=terms)
