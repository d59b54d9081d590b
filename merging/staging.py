"""Files through a device: reading, copying there, merging, copying back and writing, all at the same time.

The weights of a window lie on the device; in ordinary memory there are only a few pieces of them, of a fixed
size, pinned so that copies run beside everything else.  There are two windows on the device:

    a thread of its own    reads window k + 1 into pieces, which the copy stream takes to the device
    the caller's thread    merges window k (compute stream), the pieces of its result come back (return stream)
                           and are handed out to be written

Without CUDA the same code runs in ordinary memory, without streams.

Dimensions: r rows by c columns of a tensor; a vector is one column, see ``merging.sources.as_matrix``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import count, cycle
from typing import Any

import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from merging.sources import as_matrix

PIECE = 2**24
"""Bytes of a piece, or of one row where that is longer."""

PIECES = 4
"""Pieces in each direction: one is filled or emptied while the others travel."""

PLACED = 256
"""Every tensor of a window begins at a multiple of this many bytes."""

Fill = Callable[[int, int, Tensor], None]
"""Reads rows from ``start`` to ``stop`` into a tensor (rows, columns) of ordinary memory.

Called from the reading thread, in the order of the window's tensors and of the rows of each."""


@dataclass(frozen=True)
class Staged:
    """One tensor of a window: how its inputs are read."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    """Of the inputs and the base."""
    inputs: Sequence[Fill]
    base: Fill | None = None
    result: torch.dtype | None = None
    """Of the result; by default that of the inputs."""

    @property
    def result_dtype(self) -> torch.dtype:
        return self.result or self.dtype


@dataclass(frozen=True)
class Loaded:
    """A window on the device: what ``merge`` reads and where it writes."""

    staged: Sequence[Staged]
    inputs: Sequence[Sequence[Tensor]]
    bases: Sequence[Tensor] | None
    outputs: Sequence[Tensor]


@dataclass(frozen=True)
class Returned:
    """Consecutive rows of a result in ordinary memory; valid until the next ones are asked for."""

    staged: Staged
    start: int
    stop: int
    values: Shaped[Tensor, "r c"]
    window: int
    """Number of the window, counted from 0."""


Merge = Callable[[Loaded], None]
"""Merges a window on the current stream and raises ValueError if it cannot; it may wait for the device."""


def bytes_on_device(staged: Staged) -> int:
    """Return what one tensor takes of a window: its inputs, its base and its result."""
    elements = math.prod(staged.shape)
    read = _placed(elements * staged.dtype.itemsize) * (len(staged.inputs) + (staged.base is not None))
    return read + _placed(elements * staged.result_dtype.itemsize)


def cut_windows(staged: Iterable[Staged], limit: int) -> Iterator[list[Staged]]:
    """Yield consecutive tensors that take at most ``limit`` bytes of the device together, or one that takes more.

    All tensors of a window have a base, or none has.

    >>> tensors = [Staged(name, (64,), torch.float32, []) for name in "abc"]
    >>> [[one.name for one in window] for window in cut_windows(tensors, 512)]
    [['a', 'b'], ['c']]
    """
    window: list[Staged] = []
    taken = 0
    for one in staged:
        size = bytes_on_device(one)
        if window and (taken + size > limit or (one.base is None) != (window[0].base is None)):
            yield window
            window, taken = [], 0
        window.append(one)
        taken += size
    if window:
        yield window


class WindowPipeline:
    """Takes windows through a device; memory is that of two windows there and ``2 * PIECES`` pieces here."""

    def __init__(self, device: torch.device, merge: Merge, *, piece: int = PIECE) -> None:
        """``merge`` is called with every window, in order, on the thread that ``run`` is used from."""
        self._device = device
        self._merge = merge
        self._piece = piece
        self._streams = _Streams(device)
        self._outward = [_HostPiece(device) for _ in range(PIECES)]
        self._homeward = [_HostPiece(device) for _ in range(PIECES)]

    def run(self, windows: Iterable[Sequence[Staged]]) -> Generator[Returned, None, None]:
        """Yield the results of all windows in order, whole rows at a time.

        Errors of a reader and of ``merge`` are raised here, when the turn of their window comes.
        """
        arenas = cycle((_Arena(self._device), _Arena(self._device)))
        with ThreadPoolExecutor(1, thread_name_prefix="staging") as reading:
            before: Future[Loaded] | None = None
            numbers = count()
            for window in windows:
                # The window before last is written, so its place on the device is free.
                following = reading.submit(self._load, window, next(arenas))
                if before is not None:
                    yield from self._finish(before.result(), next(numbers))
                before = following
            if before is not None:
                yield from self._finish(before.result(), next(numbers))

    def _load(self, window: Sequence[Staged], arena: _Arena) -> Loaded:
        """Read a window into its place on the device."""
        loaded = arena.lay_out(window)
        self._streams.outward_after_allocation()
        pieces = cycle(self._outward)
        for place, one in enumerate(window):
            fills = [*one.inputs, *([] if one.base is None else [one.base])]
            targets = [*loaded.inputs[place], *([] if loaded.bases is None else [loaded.bases[place]])]
            for fill, target in zip(fills, targets, strict=True):
                matrix = target.view(as_matrix(one.shape))
                for start, stop in _row_ranges(matrix, self._piece):
                    piece = next(pieces)
                    piece.wait()
                    host = piece.view(matrix[start:stop])
                    fill(start, stop, host)
                    with self._streams.outward():
                        matrix[start:stop].copy_(host, non_blocking=True)
                        piece.record()
        # Waited for here, on the reading thread, so that the merge need not know of other streams.
        for piece in self._outward:
            piece.wait()
        return loaded

    def _finish(self, loaded: Loaded, number: int) -> Iterator[Returned]:
        """Merge a window and hand out its result, the next pieces of it on their way meanwhile."""
        self._merge(loaded)
        self._streams.homeward_after_merge()
        parts = [
            (one, matrix, start, stop)
            for one, output in zip(loaded.staged, loaded.outputs, strict=True)
            for matrix in [output.view(as_matrix(one.shape))]
            for start, stop in _row_ranges(matrix, self._piece)
        ]
        travelling: list[tuple[_HostPiece, Returned]] = []
        pieces = cycle(self._homeward)
        for one, matrix, start, stop in parts:
            piece = next(pieces)
            host = piece.view(matrix[start:stop])
            with self._streams.homeward():
                host.copy_(matrix[start:stop], non_blocking=True)
                piece.record()
            travelling.append((piece, Returned(one, start, stop, host, number)))
            if len(travelling) == PIECES:
                yield _arrived(travelling)
        while travelling:
            yield _arrived(travelling)


def _arrived(travelling: list[tuple[_HostPiece, Returned]]) -> Returned:
    piece, returned = travelling.pop(0)
    piece.wait()
    return returned


class _Streams:
    """The copy stream, the return stream and, for merging, the caller's; nothing without CUDA."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        on_cuda = device.type == "cuda"
        self._outward: Any = torch.cuda.Stream(device) if on_cuda else None  # type: ignore[no-untyped-call]
        self._homeward: Any = torch.cuda.Stream(device) if on_cuda else None  # type: ignore[no-untyped-call]

    def outward(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._outward is None else torch.cuda.stream(self._outward)

    def homeward(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._homeward is None else torch.cuda.stream(self._homeward)

    def outward_after_allocation(self) -> None:
        """Let what goes out wait for the last use of memory that the allocator may just have handed on."""
        if self._outward is not None:
            self._outward.wait_stream(torch.cuda.current_stream(self._device))

    def homeward_after_merge(self) -> None:
        """Let what comes back wait for what the caller's stream was given so far."""
        if self._homeward is not None:
            self._homeward.wait_stream(torch.cuda.current_stream(self._device))


class _HostPiece:
    """Ordinary memory, pinned for CUDA, that a copy is made from or to; it grows to the longest row."""

    def __init__(self, device: torch.device) -> None:
        self._pinned = device.type == "cuda"
        self._memory: UInt8[Tensor, " bytes"] = torch.empty(0, dtype=torch.uint8)
        self._event: Any = torch.cuda.Event() if self._pinned else None  # type: ignore[no-untyped-call]

    def view(self, like: Shaped[Tensor, "r c"]) -> Shaped[Tensor, "r c"]:
        """Return a tensor in this memory of the shape and dtype of ``like``."""
        size = like.numel() * like.element_size()
        if len(self._memory) < size:
            self._memory = torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)
        return self._memory[:size].view(like.dtype).view(like.shape)

    def record(self) -> None:
        """Remember the copy that was just given to the current stream."""
        if self._event is not None:
            self._event.record()

    def wait(self) -> None:
        """Wait until that copy is done."""
        if self._event is not None:
            self._event.synchronize()


class _Arena:
    """The place of a window on the device; it grows to the largest window."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory: UInt8[Tensor, " bytes"] = torch.empty(0, dtype=torch.uint8, device=device)

    def lay_out(self, window: Sequence[Staged]) -> Loaded:
        """Return tensors for all inputs, bases and results of a window."""
        needed = sum(bytes_on_device(one) for one in window)
        if len(self._memory) < needed:
            # Two of the larger size must not be needed at once.
            self._memory = torch.empty(0, dtype=torch.uint8, device=self._device)
            self._memory = torch.empty(needed, dtype=torch.uint8, device=self._device)
        place = 0

        def take(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
            nonlocal place
            size = math.prod(shape) * dtype.itemsize
            tensor = self._memory[place : place + size].view(dtype).view(tuple(shape))
            place += _placed(size)
            return tensor

        inputs = [[take(one.shape, one.dtype) for _ in one.inputs] for one in window]
        assert len({one.base is None for one in window}) <= 1, "all tensors of a window have a base, or none has"
        bases = [take(one.shape, one.dtype) for one in window if one.base is not None]
        outputs = [take(one.shape, one.result_dtype) for one in window]
        return Loaded(window, inputs, bases or None, outputs)


def _placed(size: int) -> int:
    return -(-size // PLACED) * PLACED


def _row_ranges(matrix: Shaped[Tensor, "r c"], piece: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) over the rows of a matrix, as many as fit into ``piece`` bytes and at least one."""
    rows, columns = matrix.shape
    if not columns:
        return
    step = max(1, piece // (columns * matrix.element_size()))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)
