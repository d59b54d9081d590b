"""Both passes over many tensors, window by window, under a budget of bytes.

A window is a run of tensors, in file order, whose inputs fit into the arena: they are read once, measured,
solved together and combined.  While one is worked on, the disk reads the next.  A tensor that does not fit is
read twice, chunk by chunk.  Peak memory is the arena and a few chunks for each worker, whatever the model's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from merging.combining import Keep, combine
from merging.measuring import measure
from merging.pieces import CHUNK
from merging.reading import OpenFiles, Reader, Scratch
from merging.single_pass import is_known_in_advance, merge_in_one_pass
from merging.solving import solve
from merging.sources import StoredTensor
from merging.task import Measurement, Solved, Task
from merging.workers import Workers

MEMORY = 2 * 2**30
"""Bytes that the inputs may take up at once, unless told otherwise."""

ENOUGH = 2**28
"""Bytes of a window beyond which nothing gets faster: memory that is used once costs more than it saves."""


@dataclass(frozen=True)
class Outcome:
    """What is known about a tensor after its merge."""

    task: Task
    measured: Measurement
    solved: Solved
    squares: Mapping[str, float] = field(default_factory=dict)
    """Squared distances to the soup and to the line, where they do not follow from coefficients."""


def merge_tasks(
    tasks: Sequence[Task],
    keep: Keep,
    *,
    memory: int = MEMORY,
    threads: int | None = None,
    after_piece: Callable[[int], None] = lambda written: None,
    after_window: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """Merge tensors and hand their values to ``keep``.

    Args:
        tasks: in the order in which their files are to be read.
        keep: takes the values.
        memory: bytes that the inputs may take up at once.
        threads: workers; by default one per processor.
        after_piece: called with the number of bytes that were finished.
        after_window: called when all tensors so far are whole.

    Raises:
        ValueError: a tensor cannot be merged; it is named.
    """
    if not tasks:
        return []
    outcomes: list[Outcome] = []
    whole = any(task.rule.granularity in ("layer", "model") for task in tasks)
    # Files are closed last: after an error a worker may still be reading.
    with OpenFiles() as files, Workers(threads) as workers:
        plain = Reader(files, Scratch())
        windows = list(windows_of(tasks, arena_bytes(memory, len(tasks[0].inputs), workers.threads)))
        arena = torch.empty(max((window.bytes for window in windows), default=0), dtype=torch.uint8)
        solved: dict[int, Solved] = {}
        measured: dict[int, Measurement] = {}
        whole = whole and not all(is_known_in_advance(task) for task in tasks)
        if whole:
            # Coefficients of a layer or of the model hang on all its tensors: everything is read twice.
            measured = dict(enumerate(measure(tasks, plain, workers)))
            solved = dict(enumerate(solve(tasks, list(measured.values()))))
        place = 0
        for window, following in zip(windows, [*windows[1:], None], strict=True):
            if following is not None:
                files.expect(source for task in following.tasks for source in task.sources)
            places = range(place, place + len(window.tasks))
            place = places.stop
            ordinary = [i for i in places if not is_known_in_advance(tasks[i])]
            direct = [i for i in places if is_known_in_advance(tasks[i])]
            known = merge_in_one_pass([tasks[i] for i in direct], plain, workers, keep, after_piece)
            measured.update(zip(direct, (one for one, _ in known), strict=True))
            solved.update(zip(direct, (one for _, one in known), strict=True))
            chosen = [tasks[i] for i in ordinary]
            reader = plain
            if not whole:
                reader = plain.keeping((source for task in chosen for source in task.sources), arena) or plain
                found = measure(chosen, reader, workers)
                measured.update(zip(ordinary, found, strict=True))
                solved.update(zip(ordinary, solve(chosen, found), strict=True))
            squares: dict[int, dict[str, float]] = {}
            for piece in combine(chosen, [solved[i] for i in ordinary], reader, workers, keep):
                own = squares.setdefault(id(piece.task), {})
                own |= {name: own.get(name, 0.0) + square for name, square in piece.squares.items()}
                after_piece(piece.bytes)
            after_window()
            outcomes += [Outcome(tasks[i], measured[i], solved[i], squares.get(id(tasks[i]), {})) for i in places]
    return outcomes


@dataclass(frozen=True)
class Window:
    """Tensors that are read together."""

    tasks: Sequence[Task]
    bytes: int
    """Of the arena; 0 for one tensor that is too large for it."""


def arena_bytes(memory: int, inputs: int, threads: int) -> int:
    """Return how much of ``memory`` holds inputs: what the workers' chunks leave of it, and no more than helps."""
    chunks = threads * (2 * inputs + 4) * CHUNK * torch.float64.itemsize
    return max(0, min(memory - chunks, ENOUGH))


def windows_of(tasks: Sequence[Task], arena: int) -> Iterator[Window]:
    """Cut the tensors into windows of at most ``arena`` bytes of inputs."""
    pending: list[Task] = []
    sources: dict[StoredTensor, int] = {}
    for task in tasks:
        own = {source: -(-source.entry.bytes // 64) * 64 for source in task.sources if isinstance(source, StoredTensor)}
        if pending and sum((sources | own).values()) > arena:
            yield Window(pending, _bytes(sources, arena))
            pending, sources = [], {}
        pending.append(task)
        sources |= own
    if pending:
        yield Window(pending, _bytes(sources, arena))


def _bytes(sources: dict[StoredTensor, int], arena: int) -> int:
    total = sum(sources.values())
    return total if total <= arena else 0
