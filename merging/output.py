"""The weight files of the result: which tensors go to which file, and their index.

Every module's folder has one ``model.safetensors``; a transformer larger than a shard has several and an
index, named as transformers names them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import TracebackType

import torch

from merging.sources import INDEX, SINGLE, Checkpoint
from storage.json_file import write_json
from storage.tensor_file import Entry, TensorFileWriter, bytes_of, dtype_code

SHARD_BYTES = 5 * 10**9
"""Largest weight file, unless told otherwise."""


@dataclass(frozen=True)
class WeightFile:
    """One file of the result."""

    path: str
    """Relative to the folder."""
    entries: Mapping[str, Entry]
    """By the tensor's full name, with its module's folder."""


def layout(donor: Checkpoint, dtypes: Mapping[str, torch.dtype], shard_bytes: int) -> list[WeightFile]:
    """Return the files of a model laid out as ``donor`` is; a tensor larger than a shard has one to itself."""
    files: list[WeightFile] = []
    for module, names in groupby(donor.tensors, key=module_of):
        entries = {
            name: Entry(name.removeprefix(f"{module}/"), dtype_code(dtypes[name]), donor.tensors[name].shape)
            for name in names
        }
        sharded = f"{module}/" == donor.transformer or module == donor.transformer
        shards = _shards(entries, shard_bytes) if sharded else [entries]
        for number, shard in enumerate(shards, 1):
            single = len(shards) == 1
            file = SINGLE if single else f"model-{number:05}-of-{len(shards):05}.safetensors"
            files.append(WeightFile(f"{module}/{file}" if module else file, shard))
    return files


def _shards(entries: Mapping[str, Entry], shard_bytes: int) -> list[dict[str, Entry]]:
    shards: list[dict[str, Entry]] = [{}]
    filled = 0
    for name, entry in entries.items():
        if shards[-1] and filled + entry.bytes > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = entry
        filled += entry.bytes
    return shards


class WeightWriters:
    """All files of a result, open at once, as a context; values go to their places from any thread."""

    def __init__(self, folder: Path, files: Sequence[WeightFile]) -> None:
        self._folder = folder
        self._files = files
        self._writers: dict[str, TensorFileWriter] = {}
        self._places: dict[str, tuple[TensorFileWriter, Entry]] = {}
        self._open = ExitStack()

    def __enter__(self) -> WeightWriters:
        with ExitStack() as opened:
            for file in self._files:
                path = self._folder / file.path
                path.parent.mkdir(parents=True, exist_ok=True)
                writer = TensorFileWriter(path, file.entries.values(), {"format": "pt"}, hashed=True)
                self._writers[file.path] = opened.enter_context(writer)
                self._places |= {name: (writer, entry) for name, entry in file.entries.items()}
            self._open = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # All of them are closed, also where the closing of one fails.
        self._open.__exit__(kind, error, trace)
        if kind is None:
            for module, files in groupby(self._files, key=lambda file: module_of(file.path)):
                self._write_index(module, list(files))

    def keep(self, name: str, first: int, values: torch.Tensor) -> None:
        """Write ``values`` from element ``first`` of tensor ``name`` on."""
        writer, entry = self._places[name]
        writer.write(entry.name, bytes_of(values), first * values.dtype.itemsize)

    def advance(self) -> None:
        """Hash what is whole so far."""
        for writer in self._writers.values():
            writer.advance()

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of the finished files by relative name."""
        return {path: writer.sha256 for path, writer in self._writers.items() if writer.sha256}

    def _write_index(self, module: str, files: Sequence[WeightFile]) -> None:
        if len(files) < 2:
            return
        entries = {entry.name: Path(file.path).name for file in files for entry in file.entries.values()}
        total = sum(entry.bytes for file in files for entry in file.entries.values())
        write_json(self._folder / module / INDEX, {"metadata": {"total_size": total}, "weight_map": entries})


def module_of(name: str) -> str:
    """Return the folder of a tensor's module: what stands before the last slash.

    >>> module_of("2_Dense/linear.weight"), module_of("embeddings.weight")
    ('2_Dense', '')
    """
    return name.rpartition("/")[0]
