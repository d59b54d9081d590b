import subprocess
import sys
from pathlib import Path

import pytest

from storage.lock import folder_lock

HOLD = """
import sys, storage.lock
with storage.lock.folder_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_second_holder_is_refused_and_the_lock_is_free_afterwards(tmp_path: Path) -> None:
    with folder_lock(tmp_path / "run"):
        with pytest.raises(ValueError, match=r"run.*in use by another process"), folder_lock(tmp_path / "run"):
            pytest.fail("the block must not be entered")
        with folder_lock(tmp_path / "other"):
            pass
    with folder_lock(tmp_path / "run"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_another_process_is_seen_and_its_death_frees_the_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="in use"), folder_lock(tmp_path / "run"):
            pytest.fail("the block must not be entered")
        holder.kill()
        holder.wait()
        with folder_lock(tmp_path / "run"):
            pass


def test_a_file_on_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ValueError, match=r"--output .*below: expected a place in a folder, got the file .*file; choose"),
        folder_lock(tmp_path / "file" / "below"),
    ):
        pass
