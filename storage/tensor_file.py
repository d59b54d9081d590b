"""safetensors files: a strict reader of headers, whole files of tensors, and a writer that streams.

Format: 8 bytes of little-endian header length, a JSON header that gives each tensor's dtype, shape and byte
range, then the bytes.  Reference: https://github.com/huggingface/safetensors (Format).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any

from storage.atomic import replacing_file
from storage.hashing import TrailingHash
from storage.json_file import parse_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BYTES_OF = (
    {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1}
    | {"U16": 2, "I16": 2, "F16": 2, "BF16": 2}
    | {"U32": 4, "I32": 4, "F32": 4}
    | {"U64": 8, "I64": 8, "F64": 8}
)
"""Bytes of one element, for every dtype of the format that torch has."""

HEADER_CAP = 100_000_000
"""Largest header that is read, in bytes: the limit of the reference implementation."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: what the header says, with ``begin`` and ``end`` counted from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int = 0
    end: int = 0

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * BYTES_OF[self.dtype]


@dataclass(frozen=True)
class Header:
    """The header of one file: its tensors in file order, and its string metadata."""

    entries: dict[str, Entry]
    metadata: dict[str, str] = field(default_factory=dict)


def read_header(path: str | os.PathLike[str], max_bytes: int = HEADER_CAP) -> Header:
    """Read and check the header of a safetensors file; no tensor is read.

    Raises:
        ValueError: the file is missing, its header is longer than ``max_bytes``, is not JSON or repeats a
            name, a dtype or shape is unknown, or the byte ranges do not fill the file exactly (truncated,
            padded, overlapping).  The message names the file and the tensor.
    """
    name = os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise ValueError(f"{name}: expected a safetensors file, got {size} bytes (truncated?); fetch it again")
            if length > max_bytes:
                raise ValueError(f"{name}: expected a header of at most {max_bytes} bytes, got {length}; not read")
            raw = file.read(length)
    except FileNotFoundError:
        raise ValueError(f"{name}: expected a safetensors file, got no such file; check the path") from None
    parsed = _parse_header(raw, name)
    metadata = parsed.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"{name}: expected __metadata__ of strings, got something else; write the file again")
    entries = sorted(
        (_entry(key, value, 8 + length, name) for key, value in parsed.items()), key=lambda e: (e.begin, e.end)
    )
    position = 8 + length
    for entry in entries:
        if entry.begin != position:
            raise ValueError(
                f"{name}: tensor {entry.name} expected at byte {position}, got {entry.begin}; file is damaged"
            )
        position = entry.end
    if position != size:
        raise ValueError(
            f"{name}: expected {position} bytes by its header, got {size} (truncated or padded); fetch it again"
        )
    return Header({entry.name: entry for entry in entries}, metadata)


def _parse_header(raw: bytes, name: str) -> dict[str, Any]:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(
            f"{name}: expected a safetensors header in UTF-8, got other bytes; is it another format?"
        ) from None
    if not text.startswith("{"):
        raise ValueError(f"{name}: expected a safetensors header, got {text[:8]!r}; is it another format?")
    parsed = parse_json(text, name)
    assert isinstance(parsed, dict)
    return parsed


def _entry(key: str, value: Any, start: int, name: str) -> Entry:
    """Check one tensor's line of the header and return it with offsets from the file's start."""
    known = isinstance(value, dict) and set(value) == {"dtype", "shape", "data_offsets"}
    if not known or value["dtype"] not in BYTES_OF:
        got = value.get("dtype") if isinstance(value, dict) else value
        raise ValueError(f"{name}: tensor {key}: expected dtype, shape and data_offsets, got {got!r}; not supported")
    shape, offsets = value["shape"], value["data_offsets"]
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [None]
    if not all(type(number) is int and number >= 0 for number in numbers) or len(offsets) != 2:
        raise ValueError(f"{name}: tensor {key}: expected whole numbers in shape and data_offsets, got {value!r}")
    entry = Entry(key, value["dtype"], tuple(shape), start + offsets[0], start + offsets[1])
    if entry.end - entry.begin != entry.bytes:
        raise ValueError(
            f"{name}: tensor {key}: expected {entry.bytes} bytes by its shape, got {entry.end - entry.begin}; damaged"
        )
    return entry


class TensorFileWriter:
    """Writes a safetensors file whose header is known before the first tensor is computed.

    Tensors may arrive in any order and in pieces, from several threads; each piece goes to its place.
    ``close`` refuses a file in which a byte was not written.  Use it inside ``building_folder`` or
    ``replacing_file``.  With ``hashed``, ``sha256`` is the file's hash once it is closed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        entries: Iterable[Entry],
        metadata: Mapping[str, str] | None = None,
        *,
        hashed: bool = False,
    ):
        # Wide elements first, as the format's own writer does, so that every tensor starts aligned to its size.
        ordered = sorted(entries, key=lambda entry: -BYTES_OF[entry.dtype])
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        position = 0
        for entry in ordered:
            assert entry.name not in header, f"tensor {entry.name} twice"
            header[entry.name] = {
                "dtype": entry.dtype,
                "shape": list(entry.shape),
                "data_offsets": [position, position + entry.bytes],
            }
            position += entry.bytes
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
        text += b" " * (-len(text) % 8)
        self._start = 8 + len(text)
        self._places = {key: value["data_offsets"] for key, value in header.items() if key != "__metadata__"}
        self._missing = {key: end - begin for key, (begin, end) in self._places.items()}
        self._following = list(self._places)
        self._whole = 0
        self._lock = Lock()
        self._file = Path(path).open("xb", buffering=0)  # noqa: SIM115  (closed by close)
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._end = self._start + position
        self._file.truncate(self._end)
        self._hash = TrailingHash(path) if hashed else None
        self.sha256: str | None = None

    def write(self, name: str, data: bytes | bytearray | memoryview, offset: int = 0) -> None:
        """Put ``data`` at ``offset`` bytes into tensor ``name``; no byte may be written twice."""
        begin, end = self._places[name]
        view = memoryview(data).cast("B")
        assert begin + offset + len(view) <= end, f"tensor {name} overflows its place"
        position = self._start + begin + offset
        size = len(view)
        while view:
            written = os.pwrite(self._file.fileno(), view, position)
            view, position = view[written:], position + written
        with self._lock:
            self._missing[name] -= size

    def advance(self) -> None:
        """Hash what is whole from the start of the file on, in the background."""
        before = self._whole
        while self._whole < len(self._following) and not self._missing[self._following[self._whole]]:
            self._whole += 1
        if self._hash is not None and self._whole > before:
            self._hash.advance(self._start + self._places[self._following[self._whole - 1]][1])

    def close(self) -> None:
        """Close the file; every tensor must have been written whole."""
        self._file.close()
        unwritten = [name for name, missing in self._missing.items() if missing]
        if unwritten:
            self._abandon()
        assert not unwritten, f"tensors not written whole: {unwritten[:3]}"
        if self._hash is not None:
            self._hash.advance(self._end)
            self.sha256 = self._hash.finish()

    def _abandon(self) -> None:
        self._file.close()
        if self._hash is not None:
            self._hash.close()

    def __enter__(self) -> TensorFileWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._abandon()


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write ``tensors`` to a safetensors file in one step, with the permissions of an ordinary file.

    Raises:
        ValueError: a tensor holds NaN or infinity (it is named, with the count), or has a dtype that the
            format lacks.
    """
    entries = [_entry_of(name, tensor, os.fspath(path)) for name, tensor in tensors.items()]
    with replacing_file(path) as temporary, TensorFileWriter(temporary, entries, metadata) as writer:
        for name, tensor in tensors.items():
            writer.write(name, bytes_of(tensor))


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read every tensor of a safetensors file into memory, after checking its header strictly."""
    from safetensors.torch import load_file

    read_header(path)
    return load_file(os.fspath(path))


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the tensor's bytes, row by row, without a copy where it is contiguous and on the CPU."""
    import torch

    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _entry_of(name: str, tensor: Tensor, path: str) -> Entry:
    import torch

    if tensor.dtype not in torch_dtypes().values():
        raise ValueError(f"{path}: tensor {name}: expected a dtype of safetensors, got {tensor.dtype}; convert it")
    # float8 has no isfinite; float64 must not be narrowed, or large values would look infinite.
    values = tensor.detach() if tensor.element_size() > 1 else tensor.detach().float()
    if tensor.is_floating_point() and not (finite := torch.isfinite(values)).all():
        raise ValueError(
            f"{path}: tensor {name}: expected finite values, got {int((~finite).sum())} that are NaN or infinite; "
            "nothing was written"
        )
    return Entry(name, dtype_code(tensor.dtype), tuple(tensor.shape))


@cache
def torch_dtypes() -> Mapping[str, Any]:
    """Return the torch dtype of each code of the format."""
    import torch

    return (
        {"BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16, "I16": torch.int16}
        | {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F16": torch.float16, "BF16": torch.bfloat16}
        | {"U32": torch.uint32, "I32": torch.int32, "F32": torch.float32}
        | {"U64": torch.uint64, "I64": torch.int64, "F64": torch.float64}
    )


def dtype_code(dtype: torch.dtype) -> str:
    """Return the code of a torch dtype that the format has."""
    return next(code for code, known in torch_dtypes().items() if known == dtype)
