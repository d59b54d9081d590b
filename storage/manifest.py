"""The manifest of a folder: each file's size and SHA-256, written last.

A folder with a manifest that verifies is complete; one without was interrupted or is somebody else's.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storage.hashing import FileHashes, sha256_of
from storage.json_file import read_json, write_json

MANIFEST = "manifest.json"


def write_manifest(
    folder: str | os.PathLike[str], *, known: Mapping[str, str] | None = None, **extra: Any
) -> dict[str, Any]:
    """Write ``manifest.json`` for every file under ``folder``; call it when all of them are final.

    The file holds ``{"files": {name: {"sha256": ..., "bytes": ...}}, **extra}`` with names relative to the
    folder and ``/`` between their parts.  Hidden files are left out.  ``known`` holds hashes, by such names,
    of files that are not to be read again.
    """
    root = Path(folder)
    ready = known or {}
    files = {
        name: {"sha256": ready.get(name) or sha256_of(root / name), "bytes": (root / name).stat().st_size}
        for name in _listed_files(root)
    }
    content = {"files": files, **extra}
    write_json(root / MANIFEST, content)
    return content


def verify_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the manifest of ``folder`` after comparing every file with it.

    Raises:
        ValueError: there is no manifest, or a file is missing, changed, or not listed; the message names it.
    """
    root = Path(folder)
    manifest = read_json(root / MANIFEST)
    listed = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(listed, dict):
        raise ValueError(f"{root / MANIFEST}: expected an object with 'files', got none; write the folder again")
    present = _listed_files(root)
    for name in present:
        if name not in listed:
            raise ValueError(f"{root / name}: expected only files of {MANIFEST}, got one it does not list; remove it")
    for name, entry in listed.items():
        path = root / name
        if name not in present:
            raise ValueError(f"{path}: expected a file of {MANIFEST}, got none; restore it or write the folder again")
        if path.stat().st_size != entry["bytes"] or sha256_of(path) != entry["sha256"]:
            raise ValueError(f"{path}: expected the content of {MANIFEST}, got another; write the folder again")
    return manifest


def weight_files(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Return every safetensors file under ``folder`` by relative name, in order of names."""
    root = Path(folder)
    return {name: root / name for name in _listed_files(root) if name.endswith(".safetensors")}


def weight_hashes(folder: str | os.PathLike[str], hashes: FileHashes | None = None) -> dict[str, str]:
    """Return the SHA-256 of every safetensors file under ``folder``, by relative name, in order of names.

    ``hashes`` may know them already.
    """
    ready = hashes or FileHashes()
    return {name: ready.sha256(path.resolve()) for name, path in weight_files(folder).items()}


def fingerprint(folder: str | os.PathLike[str]) -> str:
    """Return one SHA-256 for the weights of a model folder.

    It covers the names and contents of the folder's ``*.safetensors`` files and nothing else, so it tells
    whether an adapter belongs to a base whatever happened to the base's README.

    Raises:
        ValueError: the folder holds no safetensors file.
    """
    hashes = weight_hashes(folder)
    if not hashes:
        raise ValueError(
            f"{os.fspath(folder)}: expected a model folder with *.safetensors, got none; save it as safetensors"
        )
    return fingerprint_of(hashes)


def fingerprint_of(hashes: Mapping[str, str]) -> str:
    """Return the fingerprint that belongs to the hashes of :func:`weight_hashes`."""
    lines = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))
    return hashlib.sha256(lines.encode("utf-8")).hexdigest()


def _listed_files(root: Path) -> list[str]:
    """Return the relative names of the files under ``root``, without hidden ones and the manifest itself."""
    names = []
    for path in root.rglob("*"):
        relative = path.relative_to(root)
        if path.is_file() and not any(part.startswith(".") for part in relative.parts):
            names.append(relative.as_posix())
    return sorted(name for name in names if name != MANIFEST)
