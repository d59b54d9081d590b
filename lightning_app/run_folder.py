"""A run's folder: where everything is, and what may be done to one that exists."""

import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from lightning_app.config import Plain
from storage.atomic import refuse_existing
from storage.json_file import read_json, write_json

NOT_COMPARED = ("resume", "overwrite", "plan", "config", "json", "output", "offline", "cache")
"""Settings that a resumed run may change."""
PACKAGES = ("lightning", "torch", "transformers", "peft", "sentence-transformers", "scikit-learn", "safetensors")


def check_folder(path: Path, config: Plain, *, resume: bool, overwrite: bool) -> bool:
    """Whether an earlier output is there to go on with; changes nothing.

    An output that is older than a setting was made with that setting's default.

    Raises:
        ValueError: it exists and neither flag is given, both are, or it was made with other settings (named).
    """
    if resume and overwrite:
        raise ValueError("--resume and --overwrite: expected one of them, got both; drop one")
    if path.exists() and not path.is_dir():
        raise ValueError(f"--output {path}: expected a folder or nothing, got a file; choose another name")
    if not path.is_dir() or not any(path.iterdir()):
        return False
    if resume:
        _check_same(path, config)
        return True
    refuse_existing(path, overwrite=overwrite)
    if not _is_ours(path):
        raise ValueError(
            f"--overwrite {path}: expected an earlier output of embarc (config.json), got another folder; choose a new --output"
        )
    return False


def make_folder(path: Path, config: Mapping[str, Any]) -> None:
    """An empty folder with ``config.json``; what was there is removed (`check_folder` has allowed it)."""
    if path.is_dir():
        shutil.rmtree(path)
    path.mkdir(parents=True)
    write_json(path / "config.json", dict(config))


def _is_ours(path: Path) -> bool:
    """Whether the settings of a command stand in it; a model's folder has a config.json too, but of another kind."""
    file = path / "config.json"
    return file.is_file() and isinstance(found := read_json(file), Mapping) and {"output", "overwrite"} <= found.keys()


def _check_same(path: Path, config: Plain) -> None:
    """A resumed run has the settings it began with."""
    if not _is_ours(path):
        raise ValueError(
            f"--resume {path}: expected an earlier run (config.json), got a folder without; choose another --output"
        )
    before = _flat(_with_defaults(type(config), read_json(path / "config.json")))
    now = _flat(config.to_dict())
    different = sorted(
        key
        for key in before.keys() | now.keys()
        if before.get(key) != now.get(key) and key.split(".")[0] not in NOT_COMPARED
    )
    if different:
        shown = "; ".join(f"{key}: {before.get(key)!r} before, {now.get(key)!r} now" for key in different[:4])
        raise ValueError(
            f"--resume {path}: expected the settings of the run, got others ({shown}); use them, or another --output"
        )


def _with_defaults(kind: Any, content: Any) -> Any:
    """The plain values of a configuration, completed where it is silent, in nested configurations and lists of them too."""
    if is_dataclass(kind) and isinstance(content, Mapping):
        hints, known = get_type_hints(kind), {field.name: field for field in fields(kind)}
        told = {key: _with_defaults(hints.get(key), value) for key, value in content.items()}
        return {key: default for key, field in known.items() if (default := _default(field)) is not MISSING} | told
    if get_origin(kind) is tuple and isinstance(content, list):
        return [_with_defaults(get_args(kind)[0], item) for item in content]
    return content


def _default(field: Field[Any]) -> Any:
    """The default of a field in plain values, or MISSING."""
    return _plain(field.default if field.default_factory is MISSING else field.default_factory())


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _flat(value: Any, place: str = "") -> dict[str, Any]:
    """Nested mappings and lists -> {dotted place: leaf}."""
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(i), item) for i, item in enumerate(value)]
    else:
        return {place: value}
    return {
        key: leaf for name, item in items for key, leaf in _flat(item, f"{place}.{name}" if place else name).items()
    }


def environment() -> dict[str, Any]:
    """What a figure may depend on besides the configuration; no names of hosts, users or folders."""
    import torch

    return {
        "python": sys.version.split()[0],
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: version(name) for name in PACKAGES},
        "threads": torch.get_num_threads(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
