"""Files and folders that are whole or absent.

A file is written beside its final name, flushed to the disk, and renamed; a folder is built beside its
final name and renamed once.  A reader therefore sees the old content or the new one, never a part of it.
The temporary name lies in the target's own folder, because a rename is atomic only within a filesystem,
and it is created with ordinary permissions, so that the user's umask decides who may read the result.

A folder that replaces another changes names with it in one step where the system can do that.  Where it
cannot, the old one is moved aside first: for a moment neither stands there, so whoever reads what another
process may have been replacing calls ``restore`` before.
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

from storage.disk_space import naming_full_disk
from storage.exchange import exchange

SiblingKind = Literal["tmp", "building", "aside"]


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path``, replacing what was there in one step.

    Missing parent folders are created.  After a crash the file holds either its old or its new content.

    Raises:
        DiskFull: there is no room for it; the old content is kept.

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
    """Yield a temporary path; what was written there becomes ``path`` when the block ends without an error.

    Raises:
        DiskFull: there is no room for it; what stood at ``path`` is kept.
    """
    final = _absolute(path)
    temporary = _sibling(final, "tmp")
    with naming_full_disk(final, temporary):
        _make_parents(final)
        remove_leftovers(final)
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
    ``overwrite`` the old folder is removed only after the new one carries its name.

    Raises:
        ValueError: ``path`` exists and ``overwrite`` is false.
        DiskFull: there is no room for it.
    """
    final = _absolute(path)
    refuse_existing(final, overwrite=overwrite)
    building = _sibling(final, "building")
    with naming_full_disk(final, building):
        _make_parents(final)
        remove_leftovers(final)
        building.mkdir()
        try:
            yield building
            _respect_umask(building)
            _fsync_tree(building)
            refuse_existing(final, overwrite=overwrite)
            _give_name(building, final)
        finally:
            if os.path.lexists(building):
                _remove(building)


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


def restore(path: str | os.PathLike[str]) -> Path:
    """Give what a killed process had moved aside its name back, if nothing stands there; returns ``path``.

    For a reader that is alone with the folder (it holds the lock of the run, or starts before anything writes).
    """
    final = _absolute(path)
    if not os.path.lexists(final) and final.parent.is_dir():
        for sibling in sorted(final.parent.iterdir()):
            # another host's too: the reader is alone with the folder
            if _kind_of_leftover(sibling.name, final.name, elsewhere=True) == "aside":
                sibling.rename(final)
                _fsync(final.parent)
                break
    return Path(path)


def _give_name(building: Path, final: Path) -> None:
    """Rename ``building`` to ``final``; an older folder changes places with it, or moves aside and back if that fails."""
    if not os.path.lexists(final):
        building.rename(final)
        _fsync(final.parent)
        return
    if exchange(building, final):
        _fsync(final.parent)
        return
    aside = _sibling(final, "aside")
    final.rename(aside)
    try:
        building.rename(final)
    except OSError:
        aside.rename(final)
        raise
    _fsync(final.parent)
    _remove(aside)


def _make_parents(final: Path) -> None:
    """Make the missing folders above ``final``, each of them on the disk before what lies in it."""
    for folder in reversed([each for each in final.parents if not each.exists()]):
        folder.mkdir(exist_ok=True)
        _fsync(folder.parent)


def _absolute(path: str | os.PathLike[str]) -> Path:
    # Not resolve(): a symbolic link is replaced itself, not what it points to.
    return Path(os.path.abspath(path))  # noqa: PTH100


def _sibling(final: Path, kind: SiblingKind) -> Path:
    return final.parent / f".{final.name}.{kind}-{secrets.token_hex(4)}-{os.getpid()}@{socket.gethostname()}"


def _kind_of_leftover(name: str, final_name: str, *, elsewhere: bool = False) -> str | None:
    """Say which kind of temporary ``name`` is, or None if it is something else or its process still lives.

    Of a process of another host nothing is known, and one with our own number may be of the time before a restart;
    ``elsewhere`` takes both for dead.
    """
    stem, _, host = name.partition("@")
    prefix = f".{final_name}."
    parts = stem.removeprefix(prefix).split("-")
    if not stem.startswith(prefix) or len(parts) != 3 or parts[0] not in ("tmp", "building", "aside"):
        return None
    if not parts[2].isdigit():
        return None
    process = int(parts[2])
    unknown = host != socket.gethostname() or process == os.getpid()
    return parts[0] if (elsewhere if unknown else not _is_alive(process)) else None


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
