"""One process at a time in a folder, by an advisory lock that the kernel releases even after a kill."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def folder_lock(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock of folder ``path`` for the length of the block.

    The lock file stands beside the folder, so the folder may be absent, or be replaced while it is locked.

    Raises:
        ValueError: another process (or another block of this one) holds it, or a file stands where a folder above it would be.
    """
    folder = Path(os.path.abspath(path))  # noqa: PTH100  (a link is locked by its own name)
    above = next(each for each in folder.parents if each.exists())
    if not above.is_dir():
        raise ValueError(f"--output {path}: expected a place in a folder, got the file {above}; choose another")
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock_file = folder.parent / f".{folder.name}.lock"
    descriptor = _acquire(lock_file, os.fspath(path))
    try:
        yield
    finally:
        # Unlinked while still held: whoever waits on this very file finds it gone and opens a new one.
        lock_file.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(lock_file: Path, folder: str) -> int:
    while True:
        descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise ValueError(
                f"{folder}: expected a folder of ours alone, got one in use by another process; "
                "wait for it to end or choose another --output"
            ) from None
        if _is_still(lock_file, descriptor):
            return descriptor
        os.close(descriptor)


def _is_still(lock_file: Path, descriptor: int) -> bool:
    """Say whether the file we locked is the one under that name (its holder may have removed it meanwhile)."""
    try:
        named = lock_file.stat()
    except FileNotFoundError:
        return False
    held = os.fstat(descriptor)
    return (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)
