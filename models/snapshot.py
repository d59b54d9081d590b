"""A model's snapshot in the hub's cache: found there, or fetched whole; nothing is loaded from half of one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from models.hub import HubModel, SilentHubError, ask_hub, is_offline, reason_of, refusal, unreachable
from storage.json_file import read_json

# What a model needs to be loaded, without the same weights in other formats (pickle, ONNX, GGUF...).
WANTED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
UNWANTED = ("onnx/*", "openvino/*", "gguf/*")
NO_WEIGHTS = "its *.safetensors"
COMMIT = re.compile(r"[0-9a-f]{40}")
DESCRIBED = ("config.json", "modules.json", "adapter_config.json")


def fetch_snapshot(
    model: HubModel, *, cache: str | Path | None = None, offline: bool = False, more: Sequence[str] = ()
) -> tuple[Path, str | None]:
    """The folder of a model's snapshot, and why the hub had no part in it where it should have had one.

    A commit that is in the cache as a whole is taken without a request. Else the hub is asked, and without an
    answer the cache serves: with another commit than the row's, if it has to be, which the second part of the answer
    leaves to the caller to tell.

    Args:
        model: what is looked up.
        cache: the hub's cache folder; None for the library's default.
        offline: read the cache only.
        more: patterns of files that are fetched too (``*.py``, ``*.bin``).

    Returns:
        The folder, and None or the reason for which only the cache was read.

    Raises:
        UnreachableModel: not in the cache and not on the hub, or neither here nor within reach.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError as HubTransportError  # type: ignore[attr-defined]  # the client's base

    wanted = [*WANTED, *more]
    if (folder := _whole_commit(model, cache, wanted)) is not None:
        return folder, None
    if offline or is_offline():
        return cached_snapshot(model, cache=cache, more=more), "the hub is not asked (offline)"
    try:
        commit = ask_hub(model)
    except SilentHubError as error:
        return cached_snapshot(model, cache=cache, more=more, reason=str(error)), f"the hub cannot be reached ({error})"
    try:
        folder = Path(
            snapshot_download(
                model.repo_id,
                # By its name, so that the cache knows later which commit a branch was.
                revision=commit if model.pinned else model.revision or "main",
                cache_dir=cache,
                allow_patterns=wanted,
                ignore_patterns=list(UNWANTED),
            )
        )
    except (HubTransportError, OSError, ValueError) as error:
        causes = (error, error.__cause__)
        refused = next((found for each in causes if each is not None and (found := refusal(model, each))), None)
        raise refused or unreachable(
            model.repo_id, f"its download broke off ({reason_of(error)}); the same command goes on with it"
        ) from error
    return folder, None


def cached_snapshot(
    model: HubModel, *, cache: str | Path | None = None, more: Sequence[str] = (), reason: str | None = None
) -> Path:
    """The folder of a model's snapshot in the cache: of the revision that is asked for, or of what there is.

    Where nobody asked for a revision, another commit than the row's serves too: that of the main branch, or the only
    one.

    Args:
        model: what is looked up.
        cache: the hub's cache folder; None for the library's default.
        more: patterns of files that are needed too.
        reason: why the hub gave no answer, for the message; None where it was not to be asked.

    Raises:
        UnreachableModel: it is not in the cache, or not as a whole; names what is missing.
    """
    repository = repository_folder(model.repo_id, cache)
    commit = _cached_commit(repository, model)
    silent = f"the hub cannot be reached ({reason})" if reason else "the hub is not asked (offline)"
    if commit is None:
        snapshots = _snapshots(repository)
        if model.revision is not None and not model.pinned and snapshots:
            found = ", ".join(each[:12] for each in snapshots)
            raise unreachable(model.repo_id, f"the cache has not {model.revision!r} but {found}, and {silent}")
        raise unreachable(model.repo_id, f"it is not in the cache and {silent}")
    folder = repository / "snapshots" / commit
    missing = _missing_of_listing(model, commit, cache, [*WANTED, *more]) or missing_file(folder)
    if missing is not None and missing != NO_WEIGHTS:
        raise unreachable(model.repo_id, f"its cached copy lacks {missing}{interrupted(repository)} and {silent}")
    return folder


def repository_folder(repo_id: str, cache: str | Path | None = None) -> Path:
    """Where the cache keeps a repository.

    Example:
        >>> repository_folder("owner/name", "/cache").as_posix()
        '/cache/models--owner--name'
    """
    from huggingface_hub import constants

    root = Path(constants.HF_HUB_CACHE if cache is None else cache).expanduser()
    return root / f"models--{repo_id.replace('/', '--')}"


def missing_file(folder: Path) -> str | None:
    """The first file that a snapshot should have and has not; an interrupted download leaves such a folder."""
    if not any((folder / name).is_file() for name in DESCRIBED):
        return "config.json"
    for index in sorted(folder.rglob("*.safetensors.index.json")):
        for shard in sorted(set(read_json(index)["weight_map"].values())):
            if not (index.parent / shard).is_file():
                return str(shard)
    modules = folder / "modules.json"
    for module in read_json(modules) if modules.is_file() else ():
        file = f"{module.get('path', '')}/config.json"
        if str(module.get("type", "")).endswith(("Pooling", "Dense")) and not (folder / file).is_file():
            return file
    return None if any(each.is_file() for each in folder.rglob("*.safetensors")) else NO_WEIGHTS


def interrupted(repository: Path) -> str:
    """In brackets, for a message, that the cache holds the beginning of a file; empty where it does not."""
    begun = sorted((repository / "blobs").glob("*.incomplete"))
    return f" (its download was interrupted: {begun[0].name})" if begun else ""


def _cached_commit(repository: Path, model: HubModel) -> str | None:
    snapshots = _snapshots(repository)
    wanted = model.revision or "main"
    named = wanted if wanted in snapshots else _branch(repository, wanted)
    if named is None and re.fullmatch(r"[0-9a-f]{7,40}", wanted):
        alike = [each for each in snapshots if each.startswith(wanted)]
        named = alike[0] if len(alike) == 1 else None
    if named is None and (model.pinned or model.revision is None):
        named = _branch(repository, "main") or (snapshots[0] if len(snapshots) == 1 else None)
    return named if named in snapshots else None


def _branch(repository: Path, name: str) -> str | None:
    file = repository / "refs" / name
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None


def _snapshots(repository: Path) -> list[str]:
    folder = repository / "snapshots"
    return sorted(each.name for each in folder.iterdir() if each.is_dir()) if folder.is_dir() else []


def _whole_commit(model: HubModel, cache: str | Path | None, wanted: Sequence[str]) -> Path | None:
    """The folder of a commit that the cache holds and, by the hub's listing of its files, holds as a whole."""
    commit = model.revision or ""
    repository = repository_folder(model.repo_id, cache)
    if not COMMIT.fullmatch(commit) or not (repository / "trees" / f"{commit}.json").is_file():
        return None
    folder = repository / "snapshots" / commit
    if _missing_of_listing(model, commit, cache, wanted) is not None or missing_file(folder) not in (None, NO_WEIGHTS):
        return None
    return folder


def _missing_of_listing(model: HubModel, commit: str, cache: str | Path | None, wanted: Sequence[str]) -> str | None:
    """What a snapshot lacks by the listing that the library keeps beside it; None where it keeps none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    if not COMMIT.fullmatch(commit):
        return None
    try:
        snapshot_download(
            model.repo_id,
            revision=commit,
            cache_dir=cache,
            local_files_only=True,
            allow_patterns=list(wanted),
            ignore_patterns=list(UNWANTED),
        )
    except IncompleteSnapshotError as error:
        found = re.search(r"missing \(([^,)]+)", str(error))
        return found[1] if found else "files"
    except LocalEntryNotFoundError:
        return "its files"
    return None
