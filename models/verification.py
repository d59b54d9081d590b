"""verify_snapshot: whether the files of a model are what the hub sent, before anything is read from them.

In the hub's cache a file of a snapshot is a link to ``blobs/NAME``, and the name is a hash of the content: SHA-256
for large files, git's SHA-1 of a blob for small ones. A copy without links keeps no such name; there the sizes that
the headers of weight files say are compared, as in any folder.

Reference: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from models.snapshot import UNWANTED, WANTED
from storage.hashing import git_blob_sha1_of, sha256_of
from storage.tensor_file import read_header

READ = (*WANTED, "*.py", "*.bin")
HASHES = {64: ("SHA-256", sha256_of), 40: ("git's SHA-1", git_blob_sha1_of)}
THREADS = 4
POINTER = b"version https://git-lfs"

_verified: set[tuple[str, int, int]] = set()


def verify_snapshot(folder: Path) -> None:
    """Compare the files of a model with what is recorded of them; each once in a process, while it does not change.

    Args:
        folder: of a model: a snapshot in a hub cache, whose files are hashed (seconds for some gigabytes), or any
            other folder, of which only the weight files' sizes are compared.

    Raises:
        ValueError: a file that is cut off, that is another than the hub's, or a link to nothing; it names the file,
            and what to delete.

    Example:
        >>> from models.locate import base_folder
        >>> verify_snapshot(base_folder("tiny-llm"))
    """
    files = [file for file in _files_read(folder) if _state(file) not in _verified]
    for file in files:
        if file.suffix == ".safetensors":
            _check_size(file)
    # Of several processes on one machine the first reads for all of them.
    if os.environ.get("LOCAL_RANK", "0") == "0":
        named = [file for file in files if _hash_of(file) is not None]
        with ThreadPoolExecutor(THREADS, thread_name_prefix="verify") as threads:
            for _ in threads.map(_check_hash, named):
                pass
    _verified.update(map(_state, files))


def _files_read(folder: Path) -> Iterator[Path]:
    """The files of a model and of its modules' folders, which lie one below."""
    unwanted = {pattern.partition("/")[0] for pattern in UNWANTED}
    for place in (folder, *sorted(each for each in folder.iterdir() if each.is_dir() and each.name not in unwanted)):
        for file in sorted({each for pattern in READ for each in place.glob(pattern)}):
            if file.is_symlink() and not file.exists():
                raise ValueError(
                    f"{file}: expected a file, got a link to nothing (an interrupted download, or a cache that was "
                    "cleared); fetch it again"
                )
            unread = file.suffix == ".bin" and any(place.glob("*.safetensors"))
            if file.is_file() and not unread:
                yield file


def _state(file: Path) -> tuple[str, int, int]:
    """What changes when a file is written again."""
    status = file.stat()
    return str(file.resolve()), status.st_size, status.st_mtime_ns


def _hash_of(file: Path) -> str | None:
    """The hash that the hub's cache names a file by; None for a file that is no link into ``blobs``."""
    blob = file.resolve()
    is_named = file.is_symlink() and blob.parent.name == "blobs" and len(blob.name) in HASHES
    return blob.name if is_named and re.fullmatch("[0-9a-f]+", blob.name) else None


def _check_size(file: Path) -> None:
    with file.open("rb") as stream:
        if stream.read(len(POINTER)) == POINTER:
            raise ValueError(f"{file}: expected weights, got the pointer that git keeps for them; run `git lfs pull`")
    try:
        read_header(file)
    except ValueError as error:
        blob = f"; delete {file.resolve()} before" if file.is_symlink() else ""
        raise ValueError(f"{error}{blob}") from error


def _check_hash(file: Path) -> None:
    wanted = _hash_of(file)
    assert wanted is not None, file
    kind, hash_of = HASHES[len(wanted)]
    if (found := hash_of(file)) != wanted:
        raise ValueError(
            f"{file}: expected the hub's content ({kind} {wanted[:12]}), got another ({found[:12]}); delete "
            f"{file.resolve()} and fetch it again"
        )
