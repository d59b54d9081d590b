"""NumPy's .npy files: one array a file, written whole, and read without running what a pickle may run.

Format: a magic string, a version, a header in Python's literals that gives dtype and shape, then the bytes.
Reference: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.atomic import replacing_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def write_array(path: str | os.PathLike[str], array: NDArray[np.generic]) -> None:
    """Write ``array``, of any shape, to a .npy file in one step.

    Raises:
        ValueError: it holds NaN or infinity (with the count), or Python objects.
    """
    import numpy as np

    name = os.fspath(path)
    if array.dtype.hasobject:
        raise ValueError(f"{name}: expected an array of numbers, got one of Python objects; convert it")
    if array.dtype.kind in "fc" and not (finite := np.isfinite(array)).all():
        raise ValueError(
            f"{name}: expected finite values, got {int((~finite).sum())} that are NaN or infinite; nothing was written"
        )
    # A file object, because a name without the ending .npy would get one.
    with replacing_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def read_array(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Read a .npy file into memory.

    Raises:
        ValueError: the file is missing, is of another format, holds pickled objects, or has more or fewer bytes
            than its header says.

    >>> import numpy, pathlib, tempfile
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "a.npy"
    >>> write_array(target, numpy.eye(2))
    >>> read_array(target).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    import numpy as np

    name = os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
            rest = len(file.read(1))
    except FileNotFoundError:
        raise ValueError(f"{name}: expected a .npy file, got no such file; check the path") from None
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{name}: expected a whole .npy file of numbers, got another ({reason}); fetch it again"
        ) from None
    if rest:
        raise ValueError(f"{name}: expected the {array.nbytes} bytes of its header, got more (padded); fetch it again")
    found: NDArray[Any] = array
    return found
