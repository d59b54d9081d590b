"""Files and folders that are whole or absent.

A file is written beside its final name, flushed to the disk, and renamed; a folder is built beside its
final name and renamed once.  A reader therefore sees the old content or the new one, never a part of it.
The temporary name lies in the target's own folder, because a rename is atomic only within a filesystem,
and it is created with ordinary permissions, so that the user's umask decides who may read the result.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

SiblingKind = Literal["tmp", "building", "aside"]


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path``, replacing what was there in one step.

    Missing parent folders are created.  After a crash the file holds either its old or its new content.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "a.bin"
    >>> write_bytes(target, b"abc")
    >>> target.read_bytes()
    b'abc'
    """
    with replacing_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8 to ``path``, replacing what was there in one step."""
    write_bytes(path, text.encode("utf-8"))


@contextmanager
def replacing_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path; what was written there becomes ``path`` when the block ends without an error."""
    final = _absolute(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(final)
    temporary = _sibling(final, "tmp")
    try:
        yield temporary
        _fsync(temporary)
        temporary.replace(final)
        _fsync(final.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def building_folder(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside ``path``; it becomes ``path`` when the block ends without an error.

    On an error nothing is left of the new folder, and what stood at ``path`` is untouched.  With
    ``overwrite`` the old folder is moved aside, and removed only after the new one carries its name.

    Raises:
        ValueError: ``path`` exists and ``overwrite`` is false.
    """
    final = _absolute(path)
    refuse_existing(final, overwrite=overwrite)
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(final)
    building = _sibling(final, "building")
    building.mkdir()
    try:
        yield building
        _respect_umask(building)
        _fsync_tree(building)
        refuse_existing(final, overwrite=overwrite)
        _give_name(building, final)
    finally:
        if building.exists():
            shutil.rmtree(building)


def refuse_existing(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Raise ValueError if ``path`` exists and may not be replaced."""
    if not overwrite and os.path.lexists(path):
        raise ValueError(
            f"output folder {os.fspath(path)}: expected a name that is free, got one that exists; "
            "choose another --output or add --overwrite"
        )


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Clear what killed processes of this host left beside ``path``.

    A folder that was moved aside by a process killed before the second rename gets its name back.
    """
    final = _absolute(path)
    if not final.parent.is_dir():
        return
    for sibling in sorted(final.parent.iterdir()):
        kind = _kind_of_leftover(sibling.name, final.name)
        if kind is None:
            continue
        if kind == "aside" and not os.path.lexists(final):
            sibling.rename(final)
        else:
            _remove(sibling)


def _give_name(building: Path, final: Path) -> None:
    """Rename ``building`` to ``final``, moving an older folder out of the way and back if that fails."""
    aside = _sibling(final, "aside") if os.path.lexists(final) else None
    if aside is not None:
        final.rename(aside)
    try:
        building.rename(final)
    except OSError:
        if aside is not None:
            aside.rename(final)
        raise
    _fsync(final.parent)
    if aside is not None:
        _remove(aside)


def _absolute(path: str | os.PathLike[str]) -> Path:
    # Not resolve(): a symbolic link is replaced itself, not what it points to.
    return Path(os.path.abspath(path))  # noqa: PTH100


def _sibling(final: Path, kind: SiblingKind) -> Path:
    return final.parent / f".{final.name}.{kind}-{secrets.token_hex(4)}-{os.getpid()}@{socket.gethostname()}"


def _kind_of_leftover(name: str, final_name: str) -> str | None:
    """Say which kind of temporary ``name`` is, or None if it is something else or its process still lives."""
    stem, _, host = name.partition("@")
    prefix = f".{final_name}."
    parts = stem.removeprefix(prefix).split("-")
    if not stem.startswith(prefix) or len(parts) != 3 or parts[0] not in ("tmp", "building", "aside"):
        return None
    if host != socket.gethostname() or not parts[2].isdigit() or _is_alive(int(parts[2])):
        return None
    return parts[0]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _respect_umask(folder: Path) -> None:
    """Give every file the mode that ``open`` would have given it: libraries leave theirs readable by the owner only.

    The folder itself was made by ``mkdir``, so its mode tells the umask.
    """
    allowed = folder.stat().st_mode & 0o666
    for entry in folder.rglob("*"):
        if entry.is_file() and not entry.is_symlink():
            entry.chmod(allowed)


def _fsync_tree(folder: Path) -> None:
    for entry in sorted(folder.rglob("*")):
        if not entry.is_symlink():
            _fsync(entry)
    _fsync(folder)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
