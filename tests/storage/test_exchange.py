"""Two names change places in one step, or it is said that they cannot."""

import ctypes
import errno
from pathlib import Path

import pytest

from storage import exchange as module
from storage.exchange import exchange


def make(folder: Path) -> tuple[Path, Path]:
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "file").write_text(name)
    return folder / "a", folder / "b"


def test_two_folders_change_places_or_stay(tmp_path: Path) -> None:
    one, other = make(tmp_path)
    swapped = exchange(one, other)
    assert (one / "file").read_text() == ("b" if swapped else "a")
    assert (other / "file").read_text() == ("a" if swapped else "b")


class Library:
    """A C library whose renameat2 fails."""

    def __init__(self, code: int) -> None:
        self.code = code

    def renameat2(self, *_: object) -> int:
        ctypes.set_errno(self.code)
        return -1


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EINVAL, errno.EPERM])
def test_a_system_without_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(module.ctypes, "CDLL", lambda *_, **__: Library(code))
    assert exchange(*make(tmp_path)) is False


def test_an_old_library_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.ctypes, "CDLL", lambda *_, **__: object())
    assert exchange(*make(tmp_path)) is False


def test_an_absent_name_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.ctypes, "CDLL", lambda *_, **__: Library(errno.ENOENT))
    with pytest.raises(FileNotFoundError, match="absent"):
        exchange(tmp_path / "absent", tmp_path / "other")
