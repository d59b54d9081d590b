"""Tensors from files into buffers that are allocated once: no allocation where the work is.

Each file is opened once and read by position, so threads share it.  A window of tensors that fits into the
arena is read once and kept there for the second pass; others are read twice, chunk by chunk.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock, local
from types import TracebackType

import torch
from jaxtyping import Float64, Shaped, UInt8
from torch import Tensor

from merging.sources import StoredTensor, TensorSource, as_matrix

ALIGNMENT = 64


class OpenFiles:
    """Descriptors of files that are read, opened when first needed."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}
        self._lock = Lock()

    def __enter__(self) -> OpenFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def read(self, source: StoredTensor, begin: int, into: memoryview) -> None:
        """Fill ``into`` with the tensor's bytes from ``begin`` on.

        Raises:
            ValueError: the file has become shorter than its header said.
        """
        descriptor, position = self._descriptor(source.file), source.entry.begin + begin
        while into:
            count = os.preadv(descriptor, [into], position)
            if not count:
                raise ValueError(
                    f"{source.file}: tensor {source.entry.name}: expected {source.entry.bytes} bytes, got fewer; "
                    "the file changed while it was read: merge again"
                )
            into, position = into[count:], position + count

    def expect(self, sources: Iterable[TensorSource]) -> None:
        """Tell the system that these tensors are read next, so that the disk works ahead."""
        if not hasattr(os, "posix_fadvise"):
            return
        for source in sources:
            if isinstance(source, StoredTensor):
                entry = source.entry
                os.posix_fadvise(self._descriptor(source.file), entry.begin, entry.bytes, os.POSIX_FADV_WILLNEED)

    def _descriptor(self, path: Path) -> int:
        with self._lock:
            if path not in self._descriptors:
                self._descriptors[path] = os.open(path, os.O_RDONLY)
            return self._descriptors[path]


class Scratch(local):
    """Buffers of one worker, as large as the largest chunk so far.  Every thread sees its own."""

    def __init__(self) -> None:
        self._bytes: dict[int, Tensor] = {}
        self._numbers: dict[str, Tensor] = {}

    def bytes(self, slot: int, size: int) -> UInt8[Tensor, " size"]:
        """Return ``size`` bytes, other than those of any other slot."""
        held = self._bytes.get(slot)
        if held is None or held.numel() < size:
            held = self._bytes[slot] = torch.empty(size, dtype=torch.uint8)
        return held[:size]

    def numbers(self, rows: int, columns: int) -> Float64[Tensor, "rows columns"]:
        """Return a matrix whose rows start at multiples of 64 bytes."""
        return self._matrix(f"matrix {rows}", rows, columns)

    def row(self, name: str, columns: int) -> Float64[Tensor, " columns"]:
        """Return a row apart from the matrix and from rows of another name."""
        return self._matrix(name, 1, columns)[0]

    def _matrix(self, name: str, rows: int, columns: int) -> Float64[Tensor, "rows columns"]:
        matrix = self._numbers.get(name)
        if matrix is None or matrix.shape[1] < columns:
            padded = -(-columns // 8) * 8
            matrix = self._numbers[name] = torch.empty(rows, padded, dtype=torch.float64)
        return matrix[:, :columns]


@dataclass(frozen=True)
class Reader:
    """Reads rows of sources; those with a place in the arena are kept there."""

    files: OpenFiles
    scratch: Scratch
    arena: UInt8[Tensor, " bytes"] | None = None
    places: Mapping[int, int] = field(default_factory=dict)
    """Where in the arena a source is kept, by its id."""

    def rows(
        self, source: TensorSource, start: int, stop: int, slot: int, *, again: bool = False
    ) -> Shaped[Tensor, " m"]:
        """Return rows ``start`` to ``stop``, flat, as stored or in float64 where an adapter changes them.

        The result lives until the same thread asks for the same ``slot``.  ``again``: the rows were read
        before, so a tensor that is kept in the arena is taken from there.
        """
        if not isinstance(source, StoredTensor):
            return source.rows(start, stop).reshape(-1)
        row_bytes = as_matrix(source.shape)[1] * source.dtype.itemsize
        begin, size = start * row_bytes, (stop - start) * row_bytes
        place = self.places.get(id(source))
        if place is None or self.arena is None:
            kept, buffer = False, self.scratch.bytes(slot, size)
        else:
            kept, buffer = True, self.arena[place + begin : place + begin + size]
        if not (kept and again):
            self.files.read(source, begin, buffer.numpy().data)
        return buffer.view(source.dtype)

    def keeping(self, sources: Iterable[TensorSource], arena: UInt8[Tensor, " bytes"]) -> Reader | None:
        """Return a reader that keeps these sources in ``arena``; None if they do not fit."""
        places: dict[int, int] = {}
        end = 0
        for source in sources:
            if isinstance(source, StoredTensor) and id(source) not in places:
                places[id(source)] = end
                end += -(-source.entry.bytes // ALIGNMENT) * ALIGNMENT
        return Reader(self.files, self.scratch, arena, places) if end <= arena.numel() else None
