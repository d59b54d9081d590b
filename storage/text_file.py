"""Text files, read as strict UTF-8 with errors that name the file and the line."""

from __future__ import annotations

import os
from pathlib import Path


def read_text(path: str | os.PathLike[str], what: str = "a text file") -> str:
    """Return the content of a UTF-8 file; ``what`` is the kind of file that errors speak of.

    Raises:
        ValueError: there is no such file, or it is not UTF-8; the message names the file and the line.
    """
    name = os.fspath(path)
    try:
        return Path(path).read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ValueError(f"{name}: expected {what}, got no such file; check the path") from None
    except IsADirectoryError:
        raise ValueError(f"{name}: expected {what}, got a folder; check the path") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = error.object[error.start]
        raise ValueError(f"{name}, line {line}: expected UTF-8, got byte 0x{byte:02x}; save it as UTF-8") from None
