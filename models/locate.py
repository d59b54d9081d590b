"""Where a model's files are: a built-in folder, a given folder, or a snapshot of a hub repository."""

from __future__ import annotations

import re
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from models.backbones import Backbone, find_backbone, lookup_backbone
from models.hub import (
    MINILM_PACKAGE,
    HubModel,
    SilentHubError,
    UnreachableModel,
    ask_hub,
    is_offline,
    unreachable,
)
from models.revision import HUB_ID, is_path, split_revision
from models.snapshot import (
    DESCRIBED,
    NO_WEIGHTS,
    cached_snapshot,
    fetch_snapshot,
    interrupted,
    missing_file,
)
from models.verification import verify_snapshot
from storage.json_file import read_json

__all__ = ["UnreachableModel", "base_folder", "check_reachable", "hub_origin"]

PROJECT = Path(__file__).resolve().parent.parent


def base_folder(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    cache: str | Path | None = None,
    offline: bool = False,
    pickled_weights: bool = False,
    code: bool = False,
    verify: bool = True,
) -> Path:
    """The local folder with the weights of a model: built in, as given, or a snapshot fetched from the hub.

    Args:
        name_or_path: a name of BACKBONES, a folder, or a hub id ``owner/name``; a name and a hub id may be followed by
            ``@REVISION``. A name of BACKBONES wins over a folder of the same name; write ``./name`` for the folder.
        revision: branch, tag or commit of a hub repository; None for the one that BACKBONES pins, else its main branch.
        cache: the hub's cache folder; None for the library's default.
        offline: read the cache only.
        pickled_weights: take a model that has pickled weights only, and give the folder of its conversion.
        code: fetch a repository's own code too; it is not run here.
        verify: compare sizes and, of a hub's snapshot, hashes, once in a process (``verify_snapshot``).

    Raises:
        ValueError: an unknown name, a folder that is absent or holds no model, pickled weights only, a file that is
            cut off or another than the hub's, a built-in model that is drawn from its seed and has no folder.
        UnreachableModel: a hub model that is neither cached nor reachable; raised within seconds.
    """
    place = _place(str(name_or_path), revision)
    if isinstance(place, Path):
        return _checked_folder(place, pickled=pickled_weights, cache=cache, verify=verify)
    more = [*(["*.bin"] if pickled_weights else []), *(["*.py"] if code else [])]
    folder, silence = fetch_snapshot(place, cache=cache, offline=offline, more=more)
    repository = folder.parents[1]
    if place.pinned and folder.name != place.revision:
        warnings.warn(
            f"model {place.repo_id}: BACKBONES pins the commit {place.revision}, which is not in the cache; {silence}, so "
            f"the cached commit {folder.name} is used",
            stacklevel=2,
        )
    if verify:
        verify_snapshot(folder)
    if any(folder.rglob("*.bin")):
        folder = _with_safetensors(folder, pickled=pickled_weights, cache=cache)
    missing = missing_file(folder)
    if missing == NO_WEIGHTS and silence is None:
        raise ValueError(
            f"model {place.repo_id}: expected weights as *.safetensors on the hub, found none; "
            "if it has pickled ones (pytorch_model.bin), give --pickled-weights to convert them safely"
        )
    if missing:
        why = silence or "so does the hub's"
        raise unreachable(place.repo_id, f"its cached copy lacks {missing}{interrupted(repository)}, and {why}")
    return folder


def check_reachable(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    cache: str | Path | None = None,
    offline: bool = False,
) -> None:
    """Refuse a model that ``base_folder`` would not find, within about two seconds; fetches and loads nothing.

    The hub is asked only for what the cache has not, and its answer is kept: ``base_folder`` does not ask again.
    An adapter is followed to its base.

    Args:
        name_or_path: as of ``base_folder``; a model that is drawn from its seed is always there.
        revision: as of ``base_folder``.
        cache: as of ``base_folder``.
        offline: as of ``base_folder``.

    Raises:
        ValueError: an unknown name, or a folder that is absent or holds no model.
        UnreachableModel: a hub model that is neither cached nor reachable, or that this user may not have.

    Example:
        >>> check_reachable("tiny-llm", offline=True)
    """
    row = lookup_backbone(str(name_or_path))
    if row is not None and row.from_scratch:
        return
    place = _place(str(name_or_path), revision)
    if isinstance(place, Path):
        _check_described(place)
        if (base := _base_on_the_hub(place)) is not None:
            check_reachable(base[0], revision=base[1], cache=cache, offline=offline)
        return
    try:
        cached_snapshot(place, cache=cache)
    except UnreachableModel:
        if offline or is_offline():
            raise
        try:
            ask_hub(place)
        except SilentHubError as error:
            cached_snapshot(place, cache=cache, reason=str(error))


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


def _place(name: str, revision: str | None) -> Path | HubModel:
    """A folder that exists, or what is looked up on the hub."""
    name, revision = split_revision(name, revision)
    row = lookup_backbone(name)
    if row is None or is_path(name):
        folder = Path(name).expanduser()
        if name and folder.is_dir():
            return folder
        if is_path(name) or folder.is_file():
            raise ValueError(
                f"model: expected a folder, found none at {name}; give an existing folder or a backbone name"
            )
        if not re.fullmatch(HUB_ID, name):
            find_backbone(name)
        return HubModel(repo_id=name, revision=revision)
    if row.from_scratch:
        raise ValueError(
            f"backbone {row.name}: expected a model with stored weights, but this one is drawn from its seed; "
            "save it first and give that folder"
        )
    if row.builtin is not None:
        return _builtin_folder(row)
    if row.name == "all-minilm" and revision is None and find_spec(MINILM_PACKAGE) is not None:
        return Path(import_module(MINILM_PACKAGE).get_model_path())
    assert row.repo_id is not None, row.name
    return HubModel(
        repo_id=row.repo_id,
        revision=revision or row.revision,
        pinned=revision is None and row.revision is not None,
    )


def _base_on_the_hub(folder: Path) -> tuple[str, str | None] | None:
    """The hub id and revision of the base that an adapter folder names; None for any other folder or base."""
    file = folder / "adapter_config.json"
    if not file.is_file() or (folder / "modules.json").is_file():
        return None
    settings = read_json(file)
    base = str(settings.get("base_model_name_or_path") or "")
    return (base, settings.get("revision")) if re.fullmatch(HUB_ID, base) and not Path(base).is_dir() else None


def _builtin_folder(row: Backbone) -> Path:
    assert row.builtin is not None
    folder = PROJECT / row.builtin
    if not folder.is_dir():
        raise ValueError(
            f"backbone {row.name}: expected its weights in {row.builtin}, found no such folder; "
            f"restore it from the repository or run `python pretrain.py --output {row.builtin}`"
        )
    return folder


def _check_described(folder: Path) -> None:
    if not any((folder / name).is_file() for name in DESCRIBED):
        raise ValueError(
            f"model: expected config.json, modules.json or adapter_config.json in {folder}, found none; "
            "give a sentence-transformers, transformers or adapter folder"
        )
    config, modules = (
        read_json(folder / name) if (folder / name).is_file() else None for name in ("config.json", "modules.json")
    )
    if config is not None and not isinstance(config, dict):
        raise ValueError(f"{folder / 'config.json'}: expected an object, got {config!r:.40}; fetch the file again")
    is_list = isinstance(modules, list) and bool(modules) and all(isinstance(each, dict) for each in modules)
    if modules is not None and not is_list:
        raise ValueError(f"{folder / 'modules.json'}: expected a list of modules, got {modules!r:.40}; fetch it again")


def _checked_folder(folder: Path, *, pickled: bool, cache: str | Path | None, verify: bool) -> Path:
    """`folder`, made absolute, when it looks like a model with whole safetensors weights, or its conversion."""
    _check_described(folder)
    if verify:
        verify_snapshot(folder)
    return _with_safetensors(folder.resolve(), pickled=pickled, cache=cache)


def _with_safetensors(folder: Path, *, pickled: bool, cache: str | Path | None) -> Path:
    """`folder`, or the folder of its conversion where it holds pickled weights only."""
    from models.pickled import convert_pickled, pickled_weights

    if weights := pickled_weights(folder):
        if not pickled:
            raise ValueError(
                f"model: expected weights as *.safetensors in {folder}, found pickled ones ({weights[0].name}), which "
                "may run code when they are read; give --pickled-weights to convert them safely"
            )
        return convert_pickled(folder, cache=None if cache is None else Path(cache))
    if not any(folder.rglob("*.safetensors")):
        raise ValueError(
            f"model: expected weights as *.safetensors in {folder}, found none; "
            "finish the copy of the folder, or fetch it again"
        )
    return folder
