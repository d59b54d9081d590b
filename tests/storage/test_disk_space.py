"""No room: one line that names the file; what stood there is kept. The limit on a file's size is a real one, of the kernel."""

import errno
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from storage.array_file import write_array
from storage.atomic import building_folder, write_bytes
from storage.disk_space import DiskFull, check_room, is_full
from storage.tensor_file import write_tensors


@pytest.fixture
def small_files():
    """No file of this process may grow beyond 1000 bytes."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def by_safetensors(path: Path) -> None:
    from safetensors.torch import save_file

    with building_folder(path, overwrite=True) as folder:
        save_file({"w": torch.ones(4000)}, folder / "model.safetensors")


def nested(path: Path) -> None:
    with building_folder(path, overwrite=True) as folder:
        write_bytes(folder / "sub" / "large.bin", bytes(4000))


WRITERS = {
    "bytes": (lambda path: write_bytes(path, bytes(4000)), "out"),
    "tensors": (lambda path: write_tensors(path, {"w": torch.ones(4000)}), "out"),
    "array": (lambda path: write_array(path, np.ones(4000)), "out"),
    "safetensors": (by_safetensors, "out"),
    "nested": (nested, "out/sub/large.bin"),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_what_cannot_be_written_is_told_in_one_line_and_leaves_nothing(tmp_path, small_files, writer):
    write, named = WRITERS[writer]
    with pytest.raises(DiskFull) as error:
        write(tmp_path / "out")
    message = str(error.value)
    assert message.startswith(f"{tmp_path / named}: expected room on its disk, got ")
    assert message.endswith("; what stood there before is kept; make room and try again")
    assert list(tmp_path.iterdir()) == []


def test_what_stood_there_is_kept(tmp_path, small_files):
    write_bytes(tmp_path / "out", b"old")
    with pytest.raises(DiskFull):
        write_bytes(tmp_path / "out", bytes(4000))
    assert (tmp_path / "out").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_another_error_is_left_as_it_is(tmp_path):
    with pytest.raises(PermissionError, match="mine"), building_folder(tmp_path / "out"):
        raise PermissionError(errno.EACCES, "mine")
    assert list(tmp_path.iterdir()) == []


def test_room_is_asked_for_where_the_file_would_lie(tmp_path):
    check_room(tmp_path / "not" / "yet" / "there", 1)
    with pytest.raises(DiskFull, match=rf"there: expected {10**18} bytes of room on its disk, got \d+ bytes free"):
        check_room(tmp_path / "not" / "yet" / "there", 10**18)


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), True),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), True),
        (OSError(errno.EIO, os.strerror(errno.EIO)), False),
        (OSError("100 requested and 20 written"), True),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("I/O error: Permission denied (os error 13)"), False),
    ],
)
def test_which_errors_are_for_lack_of_room(error, full):
    assert is_full(error) is full
