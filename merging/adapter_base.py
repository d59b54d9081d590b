"""Which base an adapter belongs to: the folder that it names, the fingerprint that training recorded, quantised ones.

An adapter trained on a quantised base (QLoRA, Dettmers et al. 2023, arXiv:2305.14314) is folded into the
full-precision model, which the user names; quantised weights are refused.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from merging.adapter_config import AdapterConfig, read_adapter_config
from merging.sources import Checkpoint
from storage.json_file import read_json
from storage.manifest import MANIFEST

PathLike = str | os.PathLike[str]


def base_of(path: PathLike) -> str:
    """Return the local base folder that the adapter's own configuration names.

    Raises:
        ValueError: it names none, no folder here (a hub id, say), or a quantised model.
    """
    config = read_adapter_config(path)
    return local_base(config)


def local_base(config: AdapterConfig) -> str:
    """Return the local folder that a configuration names as the base; see ``base_of``."""
    if config.base is None or not Path(config.base).is_dir():
        raise ValueError(
            f"{config.file}: expected base_model_name_or_path to be a local folder, got {config.base!r}; "
            "add --base with the folder of the base model"
        )
    if quantisation_of(config.base):
        raise ValueError(
            f"{config.file}: expected a base in full precision, got {config.base}, which is quantised; "
            "add --base with the folder of the full-precision model"
        )
    return config.base


def recorded_base(path: PathLike) -> dict[str, Any]:
    """Return what the manifest beside an adapter says of its base: name, path, fingerprint; empty if nothing."""
    file = Path(path) / MANIFEST
    manifest = read_json(file) if file.is_file() else {}
    recorded = manifest.get("base") if isinstance(manifest, dict) else None
    return recorded if isinstance(recorded, dict) else {}


def refuse_foreign_base(path: PathLike, base: PathLike, fingerprint: str) -> None:
    """Compare ``base``, whose weights have this fingerprint, with the one that the adapter's manifest records.

    A recorded base that is quantised cannot be the one to fold into: then the shapes alone must fit.

    Raises:
        ValueError: the adapter was trained on another base.
    """
    recorded = recorded_base(path)
    expected = recorded.get("fingerprint")
    if expected in (None, fingerprint) or _was_quantised(path, recorded):
        return
    raise ValueError(
        f"{os.fspath(path)}: expected the base with fingerprint {str(expected)[:12]}, got {os.fspath(base)} with "
        f"{fingerprint[:12]}; give the base that the adapter was trained on as --base"
    )


def refuse_quantised(base: Checkpoint) -> None:
    """Raise ValueError if the transformer of ``base`` holds quantised weights."""
    if method := quantisation_of(base.folder / base.transformer):
        raise ValueError(
            f"{base.path}: expected a base in full precision to fold an adapter into, got one quantised by {method}; "
            "give the folder of the full-precision model as --base"
        )


def quantisation_of(folder: PathLike) -> str | None:
    """Return the method that the weights in a model folder are quantised by, as its config.json says."""
    file = Path(folder) / "config.json"
    content = read_json(file) if file.is_file() else {}
    found = content.get("quantization_config") if isinstance(content, dict) else None
    return str(found.get("quant_method", "an unnamed method")) if isinstance(found, dict) else None


def _was_quantised(path: PathLike, recorded: dict[str, Any]) -> bool:
    named = [recorded.get("path"), read_adapter_config(path).base]
    return any(isinstance(name, str) and quantisation_of(name) is not None for name in named)
