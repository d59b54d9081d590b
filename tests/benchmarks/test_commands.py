"""Commands that are run in turn: what is counted, whose memory, and what a failure says."""

import sys
from pathlib import Path

import pytest

from benchmarks.commands import PLAIN, Job, in_turn, plain, require_space, run


def job(output: Path, code: str) -> Job:
    return Job([sys.executable, "-IS", "-c", code, str(output)], output)


def test_the_peak_is_that_of_the_command(tmp_path: Path) -> None:
    # the memory of the process that asks must not count: Linux charges a parent's peak to what it starts
    held = bytearray(150_000_000)
    small = run(job(tmp_path / "small", "pass")).peak_bytes
    large = run(job(tmp_path / "large", "bytearray(100_000_000)")).peak_bytes
    assert len(held) == 150_000_000
    assert small < 60e6
    assert large - small == pytest.approx(100e6, abs=15e6)


def test_commands_take_turns_and_the_first_round_is_not_counted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    append = "import sys; open({!r}, 'a').write({!r}); open(sys.argv[1], 'x')"
    jobs = [job(tmp_path / name, append.format(str(log), name)) for name in ("a", "b")]
    runs = in_turn(jobs, 2)
    assert log.read_text() == "ababab"
    assert [len(each) for each in runs] == [2, 2]
    log.unlink()
    assert [len(each) for each in in_turn(jobs, 1, quick=True)] == [1, 1]
    assert log.read_text() == "ab"


def test_what_an_earlier_run_wrote_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    make = job(folder, "import os, sys; os.mkdir(sys.argv[1])")
    run(make)
    (folder / "left").touch()
    run(make)
    assert list(folder.iterdir()) == []


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"exit code 3: .*too warm"):
        run(job(tmp_path / "out", "import sys; print('too warm', file=sys.stderr); sys.exit(3)"))
    with pytest.raises(RuntimeError, match="no-such-command"):
        run(Job(["/no-such-command"], tmp_path / "out"))


def test_plain_reads_every_input_and_writes_as_much_as_one(tmp_path: Path) -> None:
    inputs = []
    for name, byte in (("a", b"a"), ("b", b"b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(byte * (3 * 2**20 + 5))
        inputs.append(tmp_path / name)
    run(plain(inputs, tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == b"a" * (3 * 2**20 + 5)
    assert "os.fsync" in PLAIN
    (inputs[1] / "model.safetensors").unlink()
    with pytest.raises(RuntimeError, match="No such file"):
        run(plain(inputs, tmp_path / "out"))


def test_a_full_disk_is_refused(tmp_path: Path) -> None:
    require_space(tmp_path, 1)
    with pytest.raises(ValueError, match=r"--scratch .*: expected 1000000000\.0 GB of free space, got"):
        require_space(tmp_path, 10**18)
