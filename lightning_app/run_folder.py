"""A run's folder: where everything is, and what may be done to one that exists."""

import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning_app.changes import (
    NOT_COMPARED,
    Change,
    find_changes,
    find_other_inputs,
    names_of,
    refuse_changes,
)
from lightning_app.config import Plain
from lightning_app.fingerprints import INPUT_NAMES, INPUTS, fingerprint_data
from storage.atomic import building_folder, refuse_existing, restore
from storage.json_file import read_json, write_json

PACKAGES = ("lightning", "torch", "transformers", "peft", "sentence-transformers", "scikit-learn", "safetensors")


def check_folder(
    path: Path,
    config: Plain,
    *,
    resume: bool,
    overwrite: bool,
    backbone: Callable[[], Mapping[str, Any]] | None = None,
) -> bool:
    """Whether an earlier output is there to go on with; nothing is written.

    An output that is older than a setting was made with that setting's default.

    Args:
        path: Folder of the output.
        config: Settings of now.
        resume, overwrite: What may be done to what is there.
        backbone: Called for the backbone's fingerprint when there is one to compare; None leaves it for later.

    Raises:
        ValueError: it exists and neither flag is given, both are, or it was made with other settings or data, or from
            another backbone, that ``config.allow_changes`` does not allow (named).
    """
    if resume and overwrite:
        raise ValueError("--resume and --overwrite: expected one of them, got both; drop one")
    allowed = getattr(config, "allow_changes", ())
    if allowed and not resume:
        raise ValueError(
            f"--allow-changes {' '.join(allowed)}: expected --resume beside it, got none; add it or drop this"
        )
    restore(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"--output {path}: expected a folder or nothing, got a file; choose another name")
    if not path.is_dir() or not any(path.iterdir()):
        return False
    if resume:
        _check_same(path, config, allowed, {} if backbone is None else backbone())
        return True
    refuse_existing(path, overwrite=overwrite)
    if not _is_ours(path):
        raise ValueError(
            f"--overwrite {path}: expected an earlier output of embarc (config.json), got another folder; choose a new --output"
        )
    return False


def make_folder(path: Path, config: Mapping[str, Any], files: Mapping[str, Any] | None = None) -> None:
    """A folder with ``config.json`` and ``files``, whole at once; what was there is removed (`check_folder` has allowed it)."""
    # what a link points to is replaced, not the link
    with building_folder(path.resolve(), overwrite=True) as building:
        for name, content in {"config.json": dict(config), **(files or {})}.items():
            write_json(building / name, content)


def adopt_changes(path: Path, config: Plain, inputs: Mapping[str, Any]) -> list[Change]:
    """Write what a resumed run goes on with into its folder: the settings, the fingerprints, and what changed, in order.

    Args:
        path: Folder of the run; `check_folder` has allowed the changes.
        config: Settings of now.
        inputs: Fingerprints of now, of data and backbone.

    Returns:
        The changes; where there are none, nothing is written.
    """
    known, changes = _inputs_before(path), list_changes(path, config, inputs)
    if changes or not known:
        listed = [{"name": each.name, "before": each.before, "now": each.now} for each in changes]
        write_json(path / INPUTS, {**inputs, "changes": [*known.get("changes", []), *listed]})
    if changes:
        before = read_json(path / "config.json")
        kept = {name: before[name] for name in NOT_COMPARED if name in before}
        write_json(path / "config.json", config.to_dict() | kept)
    return changes


def list_changes(path: Path, config: Plain, inputs: Mapping[str, Any]) -> list[Change]:
    """What differs between the run in ``path`` and these settings and fingerprints, by name."""
    settings = find_changes(type(config), read_json(path / "config.json"), config.to_dict())
    return [*settings, *find_other_inputs(_inputs_before(path), inputs)]


def other_packages(path: Path) -> list[str]:
    """The packages whose version is not the one that the run began with, as ``torch 2.10.0 before, 2.13.0 now``."""
    file = path / "environment.json"
    before = read_json(file)["packages"] if file.is_file() else {}
    return [
        f"{name} {told} before, {now} now"
        for name, now in _packages().items()
        if (told := before.get(name, now)) != now
    ]


def _is_ours(path: Path) -> bool:
    """Whether the settings of a command stand in it; a model's folder has a config.json too, but of another kind."""
    file = path / "config.json"
    return file.is_file() and isinstance(found := read_json(file), Mapping) and {"output", "overwrite"} <= found.keys()


def _check_same(path: Path, config: Plain, allowed: Sequence[str], backbone: Mapping[str, Any]) -> None:
    """A resumed run has the settings, the data and the backbone that it began with, or others that are allowed."""
    if not _is_ours(path):
        raise ValueError(
            f"--resume {path}: expected an earlier run (config.json), got a folder without; choose another --output"
        )
    before, now = read_json(path / "config.json"), config.to_dict()
    changes = list_changes(path, config, {**fingerprint_data(config), **backbone})
    known = {*names_of(type(config), before, now), *INPUT_NAMES}
    refuse_changes(path, changes, allowed=allowed, known=known)


def _inputs_before(path: Path) -> Any:
    """The fingerprints of an earlier run; a run that is older than them has none."""
    return read_json(path / INPUTS) if (path / INPUTS).is_file() else {}


def _packages() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}


def environment() -> dict[str, Any]:
    """What a figure may depend on besides the configuration; no names of hosts, users or folders."""
    import torch

    return {
        "python": sys.version.split()[0],
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": _packages(),
        "threads": torch.get_num_threads(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
