"""Inputs by their paths: each folder is opened once, hashed once, and told apart from the base by its content."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from merging.adapter import base_of, is_adapter, open_adapter
from merging.adapter_base import recorded_base, refuse_foreign_base
from merging.names import memory_views, model_type_of
from merging.request import Input, PathLike
from merging.sources import Checkpoint, open_model
from storage.hashing import FileHashes
from storage.manifest import fingerprint_of, weight_files, weight_hashes

PROBE = 2**12
"""Bytes that are compared at a few places before files are compared as a whole."""


@dataclass(frozen=True)
class Desk:
    """What has been opened so far, so that a base shared by many adapters is read once."""

    hashes: FileHashes
    lightning_checkpoints: bool = False
    models: dict[Path, Checkpoint] = field(default_factory=dict)

    def open_all(self, inputs: Sequence[Input], base: PathLike | None) -> tuple[list[Checkpoint], Checkpoint | None]:
        """Return the inputs, and the base: the one given, or the one that all adapters name.

        Raises:
            ValueError: a path is no model, or an adapter does not belong to its base; the path is named.
        """
        if base is not None and Path(base).is_dir() and is_adapter(base):
            raise ValueError(f"--base {os.fspath(base)}: expected a whole model, got an adapter; give its base")
        known = self.model(base) if base is not None else None
        opened = [self._input(one, known) for one in inputs]
        bases = {model.base.folder.resolve(): model.base for model in opened if model.base is not None}
        if known is None and len(bases) == 1:
            known = next(iter(bases.values()))
        return opened, known

    def model(self, path: PathLike) -> Checkpoint:
        """Open a model folder."""
        key = Path(path).resolve()
        if key not in self.models:
            self.models[key] = open_model(path)
        return self.models[key]

    def hashes_of(self, path: PathLike) -> dict[str, str]:
        """Return the SHA-256 of a model's weight files by name, when they are ready."""
        whole = Path(path)
        if whole.is_file():
            return {whole.name: self.hashes.sha256(whole.resolve())}
        return weight_hashes(whole, self.hashes)

    def index_of_base(self, inputs: Sequence[Checkpoint], base: Checkpoint | None) -> int | None:
        """Return which input is the base, by its place or by its content; None if none is."""
        for index, model in enumerate(inputs):
            if base is not None and model.base is None and (model is base or self._same_content(model, base)):
                return index
        return None

    def _input(self, given: Input, base: Checkpoint | None) -> Checkpoint:
        if isinstance(given, tuple):
            path, adapter = given
            return self._adapter(adapter, self.model(path))
        if Path(given).suffix == ".ckpt" and self.lightning_checkpoints:
            return self._lightning(given, base)
        if is_adapter(given):
            return self._adapter(given, base or self.model(base_of(given)))
        return self.model(given)

    def _adapter(self, path: PathLike, base: Checkpoint) -> Checkpoint:
        if recorded_base(path).get("fingerprint"):
            refuse_foreign_base(path, base.path, fingerprint_of(self.hashes_of(base.folder)))
        return open_adapter(path, base, memory_views(base, model_type_of(base)))

    def _lightning(self, path: PathLike, base: Checkpoint | None) -> Checkpoint:
        from merging.lightning_checkpoint import open_lightning_checkpoint

        return open_lightning_checkpoint(path, base)

    def _same_content(self, one: Checkpoint, other: Checkpoint) -> bool:
        """Say whether two models have the same weight files, byte for byte."""
        files, others = weight_files(one.folder), weight_files(other.folder)
        sizes = [{name: path.stat().st_size for name, path in each.items()} for each in (files, others)]
        if sizes[0] != sizes[1] or not all(_alike(files[name], others[name]) for name in files):
            return False
        return self.hashes_of(one.folder) == self.hashes_of(other.folder)


def _alike(one: Path, other: Path) -> bool:
    """Compare two files of one size at a few places."""
    size = one.stat().st_size
    with one.open("rb") as first, other.open("rb") as second:
        for part in range(8):
            for file in (first, second):
                file.seek(max(0, (size - PROBE) * part // 7))
            if first.read(PROBE) != second.read(PROBE):
                return False
    return True
