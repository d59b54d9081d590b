"""Rows of hidden states by key: in files that are appended to and read through a memory map, or in memory.

A file is a header (a magic string, its length, JSON that says whose states these are, a checksum) and one record a row:
key, precision, tokens, width and two checksums, then the bytes; every part begins at a multiple of 64. A crash can only cut
the last record short, and what a checksum does not confirm is not there: earlier rows stay as they are.

Dimension names: t tokens, w width of the hidden states.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

MAGIC = b"embarcPX"
ALIGNED = 64
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_RECORD = struct.Struct("<4s16sIIIII")
_ROW = b"row:"


class RowStore(Protocol):
    """What a cache of hidden states keeps them in."""

    size: int
    """Bytes of the states."""

    def __contains__(self, key: bytes) -> bool: ...

    def __len__(self) -> int: ...

    def get(self, key: bytes) -> Tensor | None:
        """The row of a key, (t, w); None where there is none."""

    def put(self, key: bytes, states: Tensor) -> bool:
        """Keep a row; False where it cannot be kept."""

    def refresh(self) -> None:
        """Find what other processes have kept meanwhile."""


class MemoryStore:
    """Rows in memory, for as long as the program runs.

    Example:
        >>> store = MemoryStore()
        >>> store.put(b"a" * 16, torch.ones(3, 2)), len(store), store.size
        (True, 1, 24)
    """

    def __init__(self) -> None:
        self._rows: dict[bytes, Tensor] = {}
        self.size = 0

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: bytes) -> Tensor | None:
        return self._rows.get(key)

    def put(self, key: bytes, states: Float[Tensor, "t w"]) -> bool:
        self._rows[key] = states
        self.size += states.nbytes
        return True

    def refresh(self) -> None:
        pass


@dataclass
class _Row:
    """Where a row lies."""

    file: Path
    start: int
    tokens: int
    width: int
    dtype: torch.dtype
    checksum: int
    confirmed: bool = False


class FileStore:
    """Rows in ``FOLDER/KEY-RANK.states``; every rank appends to its own file and reads those of all.

    Args:
        folder: made when the first row is kept; the folder that holds it must be there by then.
        about: whose states these are, as JSON has it; files of other states lie beside them and are not read.
        rank: of the process, for the name of its file, as long as torch's own process group does not tell it.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "prefix"
        >>> FileStore(folder, {"layer": 1}).put(b"a" * 16, torch.ones(2, 3, dtype=torch.bfloat16))
        True
        >>> FileStore(folder, {"layer": 1}).get(b"a" * 16).tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
        >>> len(FileStore(folder, {"layer": 2}))
        0
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], *, rank: int = 0) -> None:
        text = json.dumps(about, sort_keys=True).encode()
        self._header = _padded(MAGIC + struct.pack("<II", len(text), zlib.crc32(text)) + text)
        self._name = hashlib.sha256(text).hexdigest()[:16]
        self.folder, self.rank = folder, rank
        self.failure: OSError | None = None
        """Why rows are no longer kept, such as a full disk."""
        self.size = 0
        self._rows: dict[bytes, _Row] = {}
        self._ends: dict[Path, int] = {}
        self._maps: dict[Path, mmap.mmap] = {}
        self.refresh()

    def __deepcopy__(self, memo: object) -> FileStore:
        return self

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def refresh(self) -> None:
        """Read the records that were appended since the last time, by any rank."""
        for file in sorted(self.folder.glob(f"{self._name}-*.states")):
            self._scan(file)

    def get(self, key: bytes) -> Float[Tensor, "t w"] | None:
        """The row of a key, not copied from the file; None where there is none or its bytes are not what they were."""
        row = self._rows.get(key)
        if row is None:
            return None
        count = row.tokens * row.width
        stop = row.start + count * row.dtype.itemsize
        data = self._map(row.file, stop)
        if data is not None and not row.confirmed:
            row.confirmed = zlib.crc32(memoryview(data)[row.start : stop]) == row.checksum
        if data is None or not row.confirmed:
            del self._rows[key]
            return None
        return torch.frombuffer(data, dtype=row.dtype, count=count, offset=row.start).view(row.tokens, row.width)

    def put(self, key: bytes, states: Float[Tensor, "t w"]) -> bool:
        """Append a row to this rank's file.

        Returns:
            False where it was not kept: there is no folder to put the store's in, or the disk is full (then `failure` says
            why, and no row is tried any more).
        """
        if self.failure is not None or states.dtype not in DTYPES or not self.folder.parent.is_dir():
            return False
        payload = states.contiguous().cpu().view(torch.uint8).numpy().tobytes()
        tokens, width = states.shape
        head = _RECORD.pack(_ROW, key, DTYPES.index(states.dtype), tokens, width, zlib.crc32(payload), 0)
        head = head[:-4] + struct.pack("<I", zlib.crc32(head[:-4]))
        file = self.folder / f"{self._name}-{_rank(self.rank)}.states"
        try:
            self.folder.mkdir(exist_ok=True)
            if file.exists() and file.stat().st_size != self._ends.get(file):
                self._scan(file)  # another process of this rank has appended, or was cut short
            end = self._ends.get(file, 0)
            with file.open("r+b" if end else "wb") as opened:
                opened.truncate(end)
                opened.seek(end)
                opened.write((b"" if end else self._header) + _padded(head) + _padded(payload))
        except OSError as error:
            self.failure = error
            return False
        self._scan(file)
        return key in self._rows

    def _scan(self, file: Path) -> None:
        """Take up the whole records behind those that are known."""
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            end = self._ends.get(file, 0)
            if not end:
                if opened.read(len(self._header)) != self._header:
                    return
                end = len(self._header)
            while end + ALIGNED <= size:
                opened.seek(end)
                head = opened.read(_RECORD.size)
                magic, key, dtype, tokens, width, checksum, own = _RECORD.unpack(head)
                if magic != _ROW or zlib.crc32(head[:-4]) != own:
                    break
                start, bytes_ = end + ALIGNED, tokens * width * DTYPES[dtype].itemsize
                if start + _aligned(bytes_) > size:
                    break
                self.size += 0 if key in self._rows else bytes_
                self._rows[key] = _Row(file, start, tokens, width, DTYPES[dtype], checksum)
                end = start + _aligned(bytes_)
            self._ends[file] = end

    def _map(self, file: Path, stop: int) -> mmap.mmap | None:
        """The file's map, made anew where it ends before `stop`; tensors on the old one keep it."""
        found = self._maps.get(file)
        if found is None or len(found) < stop:
            try:
                with file.open("rb") as opened:
                    if os.fstat(opened.fileno()).st_size < stop:
                        return None
                    # a private copy on write: torch has no tensors that are read-only
                    found = mmap.mmap(opened.fileno(), self._ends[file], access=mmap.ACCESS_COPY)
            except FileNotFoundError:
                return None
            self._maps[file] = found
        return found


def _rank(own: int) -> int:
    """Of this process among those that train together: one that was forked has its parent's store."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else own


def _aligned(count: int) -> int:
    return -(-count // ALIGNED) * ALIGNED


def _padded(data: bytes) -> bytes:
    return data.ljust(_aligned(len(data)), b"\0")
