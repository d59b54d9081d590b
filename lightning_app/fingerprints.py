"""What a run read, by content: its data files and its backbone, so that a resume sees another file under the same name.

Nothing here imports torch.
"""

import hashlib
from pathlib import Path
from typing import Any

from lightning_app.config import Plain, TrainConfig
from storage.hashing import sha256_of
from storage.manifest import MANIFEST, fingerprint

INPUTS = "inputs.json"
"""File of a run's folder: ``{"data": {"sha256"}, "eval_data": {"sha256"}, "backbone": {...}, "changes": [...]}``."""
INPUT_NAMES = ("data.sha256", "eval_data.sha256", "backbone.commit", "backbone.weights", "backbone.files")
DESCRIBING = (".json", ".txt", ".model", ".jinja")
"""Endings of the files beside the weights that decide what a model computes: configuration, tokenizer, prompts."""


def fingerprint_data(config: Plain) -> dict[str, Any]:
    """SHA-256 of the configuration's data files; a file that is not there is left to whoever reads it.

    >>> fingerprint_data(TrainConfig())
    {}
    """
    files = {name: getattr(config, name, None) for name in ("data", "eval_data")}
    return {name: {"sha256": sha256_of(file)} for name, file in files.items() if file and Path(file).is_file()}


def fingerprint_backbone(config: TrainConfig) -> dict[str, Any]:
    """Which backbone it is: the commit of a hub model, or SHA-256 of a folder's weights and of the files beside them.

    A model that is drawn from its seed has neither. The weights are read once, about a second a gigabyte.

    Raises:
        ValueError, UnreachableModel: as `base_folder` does.

    >>> fingerprint_backbone(TrainConfig(backbone="tiny-encoder"))
    {}
    """
    # commands that look up no model are not to wait for these
    from models.backbones import lookup_backbone
    from models.locate import base_folder, hub_origin
    from models.revision import split_revision

    name, revision = split_revision(config.backbone)
    row = lookup_backbone(name)
    if row is not None and row.from_scratch:
        return {}
    folder = base_folder(
        name,
        revision=revision,
        cache=config.cache,
        offline=config.offline,
        pickled_weights=config.pickled_weights,
        code=config.trust_remote_code,
    )
    if (origin := hub_origin(folder)) is not None:
        return {"backbone": {"commit": origin[1]}}
    return {"backbone": {"weights": fingerprint(folder), "files": _fingerprint_of_rest(folder)}}


def _fingerprint_of_rest(folder: Path) -> str:
    """One SHA-256 for names and contents of what describes the model; what only tells of it is left out."""
    found = sorted(
        path for path in folder.rglob("*") if path.is_file() and path.suffix in DESCRIBING and path.name != MANIFEST
    )
    lines = "".join(f"{sha256_of(path)}  {path.relative_to(folder).as_posix()}\n" for path in found)
    return hashlib.sha256(lines.encode()).hexdigest()
