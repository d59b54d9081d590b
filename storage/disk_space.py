"""A disk that fills up, told in one line: which file, and that what stood there before is kept."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No room on the disk, in the user's quota, or for a file of that size."""


class DiskFull(OSError):  # noqa: N818  (what it is called everywhere)
    """A file or folder could not be written for lack of room; what stood there before is untouched.

    Args:
        path: What was to be written.
        reason: What was met, such as the system's own words.
        needed: Bytes that it takes, where they are known.
        advice: What to do next.

    >>> str(DiskFull("runs/a", "0 bytes free", needed=9))
    'runs/a: expected 9 bytes of room on its disk, got 0 bytes free; what stood there before is kept; make room and try again'
    """

    explained = True
    """The message says all that a user can act on; a command prints no traceback."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        reason: str,
        *,
        needed: int | None = None,
        advice: str = "what stood there before is kept; make room and try again",
    ) -> None:
        room = "room" if needed is None else f"{needed} bytes of room"
        super().__init__(f"{os.fspath(path)}: expected {room} on its disk, got {reason}; {advice}")
        self.path, self.reason, self.errno = Path(path), reason, errno.ENOSPC


def check_room(path: str | os.PathLike[str], needed: int) -> None:
    """Refuse to begin a file or folder of ``needed`` bytes that the disk has no room for.

    Raises:
        DiskFull: fewer bytes are free where ``path`` would lie.
    """
    absolute = Path(os.path.abspath(path))  # noqa: PTH100
    place = next(each for each in absolute.parents if each.exists())
    if (free := shutil.disk_usage(place).free) < needed:
        raise DiskFull(path, f"{free} bytes free", needed=needed)


@contextmanager
def naming_full_disk(final: Path, temporary: Path) -> Iterator[None]:
    """Turn an error for lack of room, of whichever library, into a DiskFull that names what was to be written.

    Args:
        final: What is being written.
        temporary: Where it lies meanwhile; a file below is told by the name that it would have had.
    """
    try:
        yield
    except (OSError, _error_of_safetensors()) as error:
        if not is_full(error):
            raise
        place, reason = temporary, os.strerror(errno.ENOSPC)
        if isinstance(error, DiskFull):
            place, reason = error.path, error.reason
        elif isinstance(error, OSError) and error.errno is not None:
            reason = os.strerror(error.errno)
            place = Path(error.filename) if isinstance(error.filename, str) else temporary
        if place.is_relative_to(temporary):
            place = final / place.relative_to(temporary)
        raise DiskFull(place, reason) from error


def is_full(error: BaseException) -> bool:
    """Whether an error is for lack of room; safetensors and NumPy give no number of it, only words."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    words = str(error)
    return any(f"(os error {code})" in words for code in _FULL) or (" requested and " in words and " written" in words)


def _error_of_safetensors() -> type[Exception]:
    from safetensors import SafetensorError

    return SafetensorError
