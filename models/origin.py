"""Which row of BACKBONES a folder of weights belongs to, by where it lies or by the code that it names.

Without it a snapshot that is given by its path would be read as any folder: GritLM's, which says nothing of its
pooling, would be causal.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from models.backbones import Backbone, lookup_backbone
from models.locate import hub_origin
from models.nomic_type import is_nomic_moe
from storage.json_file import read_json

CODE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "modeling_gritlm7b": ("gritlm",),
        "llama_bidirectional_model": ("nemotron-8b",),
        "modeling_qwen": ("gte-qwen2-1.5b", "gte-qwen2-7b"),
    }
)
"""The file of a repository's own code, and the rows that have it; of several the one of the folder's hidden size."""


def row_of(folder: Path) -> Backbone | None:
    """The row of a folder, by its hub id when it is a snapshot of a hub cache, else by its code; None for neither."""
    return row_by_hub_id(folder) or row_by_code(folder)


def row_by_hub_id(folder: Path) -> Backbone | None:
    """The row of the repository of which the folder is a snapshot.

    Example:
        >>> row_by_hub_id(Path("/cache/models--GritLM--GritLM-7B/snapshots/13f00a0")).name
        'gritlm'
    """
    origin = hub_origin(folder)
    return None if origin is None else lookup_backbone(origin[0])


def row_by_code(folder: Path) -> Backbone | None:
    """The row whose code the ``auto_map`` of the folder's config.json names, or whose mixture of experts it has.

    It tells how a model of this kind reads a text, and not that the folder has the row's sizes or pooling.
    """
    file = transformer_folder(folder) / "config.json"
    settings = read_json(file) if file.is_file() else {}
    if is_nomic_moe(settings):
        return lookup_backbone("nomic-moe")
    codes = settings.get("auto_map")
    for code in codes.values() if isinstance(codes, dict) else ():
        names = CODE.get(str(code).rpartition("--")[2].split(".")[0], ())
        rows = [row for row in map(lookup_backbone, names) if row is not None]
        if len(rows) > 1:
            rows = [row for row in rows if row.dimension == settings.get("hidden_size")]
        if rows:
            return rows[0]
    return None


def transformer_folder(folder: Path) -> Path:
    """Where the transformer's config.json and weights lie: where modules.json says, else in the folder itself."""
    modules = folder / "modules.json"
    return folder / str(read_json(modules)[0].get("path", "")) if modules.is_file() else folder
