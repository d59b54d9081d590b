"""exchange: two names change places in one step, so that neither is missing for a moment.

Linux's renameat2 with RENAME_EXCHANGE; most local filesystems have it, some network ones do not.
Reference: https://man7.org/linux/man-pages/man2/rename.2.html
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

_HERE, _EXCHANGE = -100, 2
_NOT_HERE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)
"""The kernel, the filesystem or a sandbox does not have it."""


def exchange(one: Path, other: Path) -> bool:
    """Swap what two existing names of one filesystem stand for; False where the system cannot, and nothing was done.

    Raises:
        OSError: it can, and these two it could not.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "a").write_text("1"), (folder / "b").write_text("2")
    >>> exchange(folder / "a", folder / "b") in (True, False)
    True
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NOT_HERE:
        return False
    raise OSError(code, os.strerror(code), os.fspath(one), None, os.fspath(other))
