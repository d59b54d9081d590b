"""Checkpoints on disk, read by their headers: which tensors there are, and where their bytes lie.

A folder is a sentence-transformers model (modules.json; weights at the root and in the modules' folders) or
a plain transformers model (config.json).  Weights are safetensors, in one file or in shards with an index.
No model class, no code of the checkpoint, no pickle and no network is involved.  Adapters and Lightning
checkpoints are opened upon a folder: see ``merging.adapter`` and ``merging.lightning_checkpoint``.

Every tensor is seen as a matrix of rows (its first dimension) by columns (the rest), read a few rows at a time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Shaped
from torch import Tensor

from merging.run_folder import folder_of_weights
from storage.json_file import read_json
from storage.tensor_file import Entry, read_header, torch_dtypes

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@runtime_checkable
class TensorSource(Protocol):
    """One tensor of one input, wherever it is."""

    @property
    def where(self) -> str:
        """The file or argument that errors speak of."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype it is stored in, which is the dtype of the result."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def rows(self, start: int, stop: int) -> Shaped[Tensor, "rows columns"]:
        """Rows ``start`` to ``stop``: as stored, or in float64 where an adapter changes them."""

    def held(self) -> TensorSource:
        """The same tensor with what it needs from the disk in memory."""


@dataclass(frozen=True)
class HeldTensor:
    """A tensor in memory."""

    tensor: Tensor
    where: str

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def rows(self, start: int, stop: int) -> Shaped[Tensor, "rows columns"]:
        return self.tensor.detach().reshape(as_matrix(self.shape))[start:stop]

    def held(self) -> HeldTensor:
        return self


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file, read when it is asked for."""

    file: Path
    entry: Entry

    @property
    def where(self) -> str:
        return str(self.file)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = torch_dtypes()[self.entry.dtype]
        return dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape

    def rows(self, start: int, stop: int) -> Shaped[Tensor, "rows columns"]:
        _, columns = as_matrix(self.shape)
        row_bytes = columns * self.dtype.itemsize
        data = bytearray((stop - start) * row_bytes)
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.entry.begin + start * row_bytes)
            view = memoryview(data)
            while view:
                count = file.readinto(view)
                if not count:
                    raise ValueError(
                        f"{self.file}: tensor {self.entry.name}: expected {self.entry.bytes} bytes, got fewer; "
                        "the file changed while it was read: merge again"
                    )
                view = view[count:]
        if not data:
            return torch.empty(stop - start, columns, dtype=self.dtype)
        return torch.frombuffer(data, dtype=self.dtype).reshape(stop - start, columns)

    def held(self) -> HeldTensor:
        rows, _ = as_matrix(self.shape)
        return HeldTensor(self.rows(0, rows).reshape(self.shape), self.where)


@dataclass(frozen=True)
class Checkpoint:
    """One model of the merge: its tensors by name, in file order."""

    path: str
    """As the user gave it."""
    kind: str
    """``sentence-transformers``, ``transformers``, ``adapter`` or ``lightning``."""
    folder: Path
    """The model folder whose tokenizer, configuration and modules belong to these tensors."""
    tensors: dict[str, TensorSource]
    """Names are those of the file, after the module's folder and a slash: ``2_Dense/linear.weight``."""
    transformer: str = ""
    """Prefix of the transformer's own tensors: ``""`` at the root, else its folder and a slash."""
    base: Checkpoint | None = None
    """For an adapter: the model it is folded into; for a Lightning checkpoint: the model whose folder it borrows."""
    notes: tuple[str, ...] = ()
    """What was left aside on opening it, for the report."""


def as_matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Return (rows, columns) of the matrix that a tensor of this shape is read as."""
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


def open_model(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a model folder by its headers.

    The base stage of a run, which has no weights, is opened as the base that the run was trained on.

    Raises:
        ValueError: there is no such folder, it is no model folder, it is a whole run (its stages are named), it has
            weights only in another format than safetensors, or its files contradict each other; the message names
            the file.
    """
    folder = Path(path)
    given = os.fspath(path)
    if folder.suffix == ".ckpt" and folder.exists():
        raise ValueError(
            f"{given}: expected a model folder, got a Lightning checkpoint; "
            "add --lightning-checkpoints and --base to read its weights"
        )
    if folder.is_dir() and (meant := folder_of_weights(folder)) != folder:
        folder, given = meant, os.fspath(meant)
    if not folder.is_dir():
        got = "a file" if folder.exists() else "nothing there"
        raise ValueError(f"{given}: expected a model folder, got {got}; give the folder of a model or an adapter")
    if (folder / "modules.json").is_file():
        kind, modules = "sentence-transformers", _module_folders(folder)
    elif (folder / "config.json").is_file():
        kind, modules = "transformers", [""]
    else:
        raise ValueError(
            f"{given}: expected modules.json, config.json or adapter_config.json in the folder, got none of them; "
            "give the folder of a sentence-transformers or transformers model or of a PEFT adapter"
        )
    tensors: dict[str, TensorSource] = {}
    for module in modules:
        for tensor in _stored_tensors(folder / module):
            if "/" in tensor.entry.name:
                raise ValueError(
                    f"{tensor.file}: expected tensor names without a slash, got {tensor.entry.name}; rename it"
                )
            tensors[module + tensor.entry.name] = tensor
    if not tensors:
        raise ValueError(f"{given}: expected {SINGLE} or {INDEX}, got neither; save the model as safetensors")
    return Checkpoint(given, kind, folder, tensors, transformer=modules[0])


def _module_folders(folder: Path) -> list[str]:
    """Return the prefixes of a sentence-transformers folder's parts, transformer first; "" is the root."""
    modules = read_json(folder / "modules.json")
    paths = [module.get("path") if isinstance(module, dict) else None for module in modules or [None]]
    prefixes: list[str] = []
    for path in paths:
        if not isinstance(path, str) or Path(path).is_absolute() or ".." in Path(path).parts:
            raise ValueError(f"{folder / 'modules.json'}: expected paths inside the folder, got {path!r}; correct it")
        inside = folder / path
        nested = sorted(inner for inner in inside.rglob("*") if inner.is_dir()) if path else []
        for part in (inside, *nested):
            relative = part.relative_to(folder).as_posix()
            prefixes.append("" if relative == "." else f"{relative}/")
    return list(dict.fromkeys(prefixes))


def _stored_tensors(folder: Path) -> list[StoredTensor]:
    """Return the tensors of one module's folder, in file order; none for modules without weights."""
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file() and index.is_file():
        raise ValueError(f"{folder}: expected {SINGLE} or {INDEX}, got both; remove the one that is out of date")
    if index.is_file():
        return _sharded(index)
    if single.is_file():
        return [StoredTensor(single, entry) for entry in read_header(single).entries.values()]
    pickled = sorted(folder.glob("pytorch_model*.bin")) if folder.is_dir() else []
    if pickled:
        raise ValueError(
            f"{pickled[0]}: expected safetensors, got a pickle, which can run code when opened; "
            "load the model once and save it with save_pretrained"
        )
    return []


def _sharded(index: Path) -> list[StoredTensor]:
    """Return the tensors of a sharded model, after comparing the index with every shard."""
    content = read_json(index)
    mapping = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(mapping, dict) or not mapping or not all(isinstance(name, str) for name in mapping.values()):
        raise ValueError(f"{index}: expected an object weight_map of tensor to file, got none; save the model again")
    found: list[StoredTensor] = []
    for shard in sorted(set(mapping.values())):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ValueError(f"{index}: expected names of safetensors files beside it, got {shard!r}; not followed")
        entries = read_header(index.parent / shard).entries.values()
        found += [StoredTensor(index.parent / shard, entry) for entry in entries]
    inside = {(tensor.entry.name, tensor.file.name) for tensor in found}
    for name, shard in sorted(set(mapping.items()) ^ inside):
        said = "the index only" if (name, shard) not in inside else "the shard only"
        raise ValueError(
            f"{index}: tensor {name} expected in the index and in {shard}, got it in {said}; fetch it again"
        )
    return found
