"""The plan of a merge of files: everything that can be refused is refused here, before a byte is written."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from merging.adapter import base_of, is_adapter, open_adapter
from merging.agreement import refuse_disagreement
from merging.companions import companion_files
from merging.methods import find_method
from merging.rule import Number, Rule, settle_rule
from merging.sources import Checkpoint, open_model
from storage.atomic import refuse_existing
from storage.json_file import read_json
from storage.manifest import MANIFEST, fingerprint_of, weight_hashes

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class MergePlan:
    """A merge that has passed every check the headers allow."""

    rule: Rule
    inputs: tuple[Checkpoint, ...]
    base: Checkpoint | None
    donor: Checkpoint
    """Whose companions, file layout and dtypes the result has: the base, or else the first input."""
    hashes: dict[Path, dict[str, str]]
    """SHA-256 of the weight files of every folder that is read, by resolved folder and name."""
    output: Path
    overwrite: bool
    memory: int

    @property
    def bytes(self) -> int:
        """Bytes of weights that will be written."""
        return sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in self.donor.tensors.values())


def plan_merge(
    inputs: Sequence[PathLike],
    output: PathLike,
    *,
    method: str,
    base: PathLike | None,
    weights: Sequence[Number] | None,
    t: Number | None,
    space: str | None,
    norm: str,
    antipodal: str,
    memory: int,
    overwrite: bool,
) -> MergePlan:
    """Open every input by its headers, settle the parameters and check them against each other.

    Raises:
        ValueError: anything that can be known to be wrong without reading tensors; see ``merge_checkpoints``.
    """
    find_method(method)
    if memory <= 0:
        raise ValueError(f"--memory: expected a positive number of bytes, got {memory}; leave it out for 2 GiB")
    if not inputs:
        raise ValueError("--inputs: expected at least 2 models, got none; add --inputs")
    desk = _Desk()
    opened, known_base = desk.open_all(inputs, base)
    _check_output(Path(output), overwrite, [*opened, *([known_base] if known_base else [])])
    base_index = desk.index_of_base(opened, known_base)
    rule = settle_rule(
        method,
        inputs=len(opened),
        has_base=known_base is not None,
        base_index=base_index,
        weights=weights,
        t=t,
        space=space,
        norm=norm,
        antipodal=antipodal,
    )
    models = [known_base, *opened] if known_base else opened
    refuse_disagreement([model.path for model in models], [model.tensors for model in models])
    plan = MergePlan(
        rule=rule,
        inputs=tuple(opened),
        base=known_base,
        donor=known_base or opened[0],
        hashes=desk.hash_all(models),
        output=Path(output),
        overwrite=overwrite,
        memory=memory,
    )
    _check_disk(plan)
    return plan


@dataclass(frozen=True)
class _Desk:
    """What has been opened and hashed so far, so that a base shared by many adapters is read once."""

    models: dict[Path, Checkpoint] = field(default_factory=dict)
    hashes: dict[Path, dict[str, str]] = field(default_factory=dict)

    def open_all(self, inputs: Sequence[PathLike], base: PathLike | None) -> tuple[list[Checkpoint], Checkpoint | None]:
        """Return the inputs, and the base: the one given, or the one that all adapters name."""
        if base is not None and Path(base).is_dir() and is_adapter(base):
            raise ValueError(f"--base {os.fspath(base)}: expected a whole model, got an adapter; give its base")
        known = self.model(base) if base is not None else None
        opened = [self.adapter(path, known) if is_adapter(path) else self.model(path) for path in inputs]
        bases = {model.base.folder.resolve(): model.base for model in opened if model.base is not None}
        if known is None and len(bases) == 1:
            known = next(iter(bases.values()))
        return opened, known

    def model(self, path: PathLike) -> Checkpoint:
        key = Path(path).resolve()
        if key not in self.models:
            self.models[key] = open_model(path)
        return self.models[key]

    def adapter(self, path: PathLike, base: Checkpoint | None) -> Checkpoint:
        into = base or self.model(base_of(path))
        self._refuse_foreign_base(Path(path), into)
        return open_adapter(path, into)

    def hashes_of(self, folder: Path) -> dict[str, str]:
        key = folder.resolve()
        if key not in self.hashes:
            self.hashes[key] = weight_hashes(folder)
        return self.hashes[key]

    def hash_all(self, models: Sequence[Checkpoint]) -> dict[Path, dict[str, str]]:
        for model in models:
            self.hashes_of(Path(model.path))
            self.hashes_of(model.folder)
        return self.hashes

    def index_of_base(self, inputs: Sequence[Checkpoint], base: Checkpoint | None) -> int | None:
        """Return which input is the base, by its place or by its content; None if none is."""
        for index, model in enumerate(inputs):
            if base is None or model.base is not None:
                continue
            if model is base or self.hashes_of(model.folder) == self.hashes_of(base.folder):
                return index
        return None

    def _refuse_foreign_base(self, adapter: Path, base: Checkpoint) -> None:
        """Compare the base with the fingerprint that training wrote beside the adapter, if it did."""
        if not (adapter / MANIFEST).is_file():
            return
        recorded = read_json(adapter / MANIFEST).get("base") or {}
        expected = recorded.get("fingerprint") if isinstance(recorded, dict) else None
        got = fingerprint_of(self.hashes_of(base.folder))
        if expected is not None and expected != got:
            raise ValueError(
                f"{adapter}: expected the base with fingerprint {str(expected)[:12]}, got {base.path} with {got[:12]}; "
                "give the base that the adapter was trained on as --base"
            )


def _check_output(output: Path, overwrite: bool, models: Sequence[Checkpoint]) -> None:
    """Refuse a name that is taken, and one whose replacement would take an input with it."""
    refuse_existing(output, overwrite=overwrite)
    target = output.resolve()
    for model in models:
        for folder in (model.folder.resolve(), Path(model.path).resolve()):
            if target == folder or target in folder.parents or folder in target.parents:
                raise ValueError(
                    f"--output {output}: expected a place apart from the inputs, got {model.path}; choose another"
                )
    if target == Path.cwd() or target in Path.cwd().parents:
        raise ValueError(f"--output {output}: expected a folder of its own, got the current one; choose another")


def _check_disk(plan: MergePlan) -> None:
    place = plan.output.absolute()
    while not place.exists():
        place = place.parent
    folder = plan.donor.folder
    needed = plan.bytes + sum((folder / name).stat().st_size for name in companion_files(folder))
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ValueError(f"--output {plan.output}: expected {needed} bytes free on its disk, got {free}; make room")
