import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from storage.atomic import building_folder, replacing_file, write_bytes, write_text


def fail_half_way(place: Path, error: BaseException) -> None:
    """What a program does that dies after it has written something."""
    (place / "half" if place.is_dir() else place).write_text("half")
    raise error


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_bytes_replaces_the_content_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_bytes(tmp_path / "deep" / "a", b"old")
    write_bytes(tmp_path / "deep" / "a", b"new")
    assert (tmp_path / "deep" / "a").read_bytes() == b"new"
    assert names(tmp_path / "deep") == ["a"]


def test_write_text_is_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "Récaman\n")
    assert (tmp_path / "a").read_bytes() == "Récaman\n".encode()


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_the_umask_decides_who_may_read(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_bytes(tmp_path / "file", b"")
        with building_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~mask


def test_a_failing_write_keeps_the_old_file(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"old")
    with pytest.raises(RuntimeError), replacing_file(tmp_path / "a") as temporary:
        fail_half_way(temporary, RuntimeError())
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_folder_appears_only_when_the_block_has_ended(tmp_path: Path) -> None:
    with building_folder(tmp_path / "out") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "a").write_text("1")
        assert not (tmp_path / "out").exists()
        assert folder.parent == tmp_path
    assert (tmp_path / "out" / "inner" / "a").read_text() == "1"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failing_build_leaves_nothing_new_and_the_old_folder_whole(
    tmp_path: Path, error: type[BaseException]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with pytest.raises(error), building_folder(tmp_path / "out", overwrite=True) as folder:
        fail_half_way(folder, error())
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["old"]


def test_an_existing_target_is_refused_and_overwrite_replaces_it(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with pytest.raises(ValueError, match=r"out.*--overwrite"), building_folder(tmp_path / "out"):
        pytest.fail("the block must not be entered")
    with building_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["new"]


def test_a_target_that_appeared_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--overwrite"), building_folder(tmp_path / "out"):
        write_text(tmp_path / "out" / "theirs", "")
    assert names(tmp_path / "out") == ["theirs"]
    assert names(tmp_path) == ["out"]


def test_overwriting_a_link_replaces_the_link_and_not_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "a").write_text("a")
    (tmp_path / "out").symlink_to(tmp_path / "precious")
    with building_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert names(tmp_path / "out") == ["new"]
    assert names(tmp_path / "precious") == ["a"]


def run_and_kill(code: str, folder: Path) -> None:
    """Run ``code`` in another process, which kills itself with SIGKILL at the name ``die``."""
    prelude = "import os, signal, storage.atomic as atomic\ndef die(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
    process = subprocess.run([sys.executable, "-c", prelude + code, str(folder)], cwd=Path(__file__).parents[2])
    assert process.returncode == -signal.SIGKILL


def test_what_a_killed_build_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    run_and_kill(
        "import sys\nwith atomic.building_folder(sys.argv[1]) as f: (f / 'a').write_text('x'); die()", tmp_path / "out"
    )
    assert not (tmp_path / "out").exists()
    assert len(names(tmp_path)) == 1
    (tmp_path / ".out.building-by-somebody-else").mkdir()
    with building_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == [".out.building-by-somebody-else", "out"]


def test_a_folder_moved_aside_by_a_killed_overwrite_gets_its_name_back(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    code = (
        "import sys, pathlib\natomic.exchange = lambda *_: False\nreal = pathlib.Path.rename\n"
        "def rename(self, to):\n    real(self, to)\n    die()\n"
        "pathlib.Path.rename = rename\n"
        "with atomic.building_folder(sys.argv[1], overwrite=True): pass"
    )
    run_and_kill(code, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(RuntimeError), building_folder(tmp_path / "out", overwrite=True):
        raise RuntimeError
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["old"]


def test_the_temporary_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    with building_folder(tmp_path / "out", overwrite=True) as first:
        with building_folder(tmp_path / "out", overwrite=True) as second:
            (second / "b").write_text("")
        (first / "a").write_text("")
    assert names(tmp_path / "out") == ["a"]


def test_files_of_a_built_folder_follow_the_umask(tmp_path):
    """safetensors writes its files for the owner only; a folder that is given away must be readable."""
    with building_folder(tmp_path / "out") as folder:
        (folder / "private").touch(mode=0o600)
        (folder / "sub").mkdir()
        (folder / "sub" / "private").touch(mode=0o600)
    (tmp_path / "plain").touch()
    expected = (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "out" / "private").stat().st_mode == expected
    assert (tmp_path / "out" / "sub" / "private").stat().st_mode == expected
