"""The file of states: what a crash, a full disk, a flipped bit and another model's file do to it."""

from __future__ import annotations

import builtins
import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from models.prefix_store import DTYPES, FileStore

ABOUT = {"layer": 1, "weights": "abc"}


def key(number: int) -> bytes:
    return number.to_bytes(16, "little")


def states(number: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(3 + number, 5, generator=torch.Generator().manual_seed(number)).to(dtype)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "prefix"


def filled(folder: Path, count: int = 4, **how: Any) -> Path:
    store = FileStore(folder, ABOUT, **how)
    assert all(store.put(key(number), states(number)) for number in range(count))
    (file,) = folder.glob(f"*-{how.get('rank', 0)}.states")
    return file


@pytest.mark.parametrize("dtype", DTYPES)
def test_states_come_back_bit_for_bit_in_every_precision(folder: Path, dtype: torch.dtype) -> None:
    store = FileStore(folder, ABOUT)
    for number in range(3):
        assert store.put(key(number), states(number, dtype))
    for reader in (store, FileStore(folder, ABOUT)):
        assert len(reader) == 3
        assert reader.size == sum(states(number, dtype).nbytes for number in range(3))
        for number in range(3):
            found = reader.get(key(number))
            assert found is not None
            assert found.dtype == dtype
            assert torch.equal(found, states(number, dtype))
        assert reader.get(key(9)) is None


def test_any_file_that_a_crash_can_leave_holds_the_earlier_rows_and_takes_new_ones(folder: Path) -> None:
    file = filled(folder)
    whole = file.read_bytes()
    ends = [FileStore(folder, ABOUT)._rows[key(number)].start for number in range(4)]
    for length in [*range(0, len(whole), 61), len(whole)]:
        file.write_bytes(whole[:length])
        store = FileStore(folder, ABOUT)
        kept = [number for number in range(4) if store.get(key(number)) is not None]
        assert kept == list(range(len(kept)))
        assert all(torch.equal(store.get(key(number)), states(number)) for number in kept)
        assert len(kept) >= sum(start + 1024 <= length for start in ends)
        assert store.put(key(7), states(7))
        again = FileStore(folder, ABOUT)
        assert len(again) == len(kept) + 1
        assert torch.equal(again.get(key(7)), states(7))


def test_a_row_whose_bytes_have_changed_is_not_there(folder: Path) -> None:
    file = filled(folder)
    data = bytearray(file.read_bytes())
    data[FileStore(folder, ABOUT)._rows[key(1)].start + 2] ^= 1
    file.write_bytes(data)
    store = FileStore(folder, ABOUT)
    assert store.get(key(1)) is None
    assert key(1) not in store
    assert torch.equal(store.get(key(2)), states(2))
    assert store.put(key(1), states(1))
    assert torch.equal(FileStore(folder, ABOUT).get(key(1)), states(1))


def test_states_of_other_weights_are_not_read(folder: Path) -> None:
    file = filled(folder)
    assert len(FileStore(folder, ABOUT | {"weights": "abd"})) == 0
    data = file.read_bytes()
    file.write_bytes(data.replace(b'"abc"', b'"abd"'))
    assert len(FileStore(folder, ABOUT)) == 0


def test_ranks_write_a_file_each_and_read_all(folder: Path) -> None:
    first, second = FileStore(folder, ABOUT), FileStore(folder, ABOUT, rank=1)
    assert first.put(key(0), states(0))
    assert second.put(key(1), states(1))
    assert key(1) not in first
    first.refresh()
    assert torch.equal(first.get(key(1)), states(1))
    assert len(list(folder.iterdir())) == 2


def test_a_process_that_was_forked_may_have_appended(folder: Path) -> None:
    """The parent's map and its end of the file are old."""
    parent, child = FileStore(folder, ABOUT), FileStore(folder, ABOUT)
    assert parent.put(key(0), states(0))
    kept = parent.get(key(0))
    child.refresh()
    assert child.put(key(1), states(1))
    assert parent.put(key(2), states(2))
    found = FileStore(folder, ABOUT)
    assert [torch.equal(found.get(key(number)), states(number)) for number in range(3)] == [True] * 3
    assert torch.equal(kept, states(0))


class Full(io.FileIO):
    """A file on a disk with room for so many bytes more."""

    room = 0

    def write(self, data: Any) -> int:
        written = super().write(bytes(data)[: Full.room])
        Full.room -= written
        if written < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written


def test_a_disk_that_is_full_loses_the_new_row_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = filled(folder)
    store = FileStore(folder, ABOUT)
    opened = builtins.open

    def full(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        return Full(path, mode) if mode == "r+b" else opened(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", lambda self, mode="r", *_, **__: full(self, mode))
    Full.room = 100
    assert not store.put(key(5), states(5))
    assert store.failure is not None
    assert store.failure.errno == errno.ENOSPC
    assert not store.put(key(6), states(6)), "it is not tried again"
    monkeypatch.undo()
    assert torch.equal(store.get(key(3)), states(3))
    again = FileStore(folder, ABOUT)
    assert len(again) == 4
    assert again.put(key(5), states(5))
    assert len(FileStore(folder, ABOUT)) == 5
    assert file.stat().st_size % 64 == 0


def test_nothing_is_written_before_the_run_has_its_folder(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "run" / "prefix", ABOUT)
    assert not store.put(key(0), states(0))
    assert store.failure is None
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    assert store.put(key(0), states(0))
