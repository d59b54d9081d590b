"""The command itself, killed or stopped in the middle of a stage and called again: the files of a run left alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from storage.json_file import read_json
from storage.tensor_file import read_tensors

ROOT = Path(__file__).parents[2]
CLOCK = ("seconds", "throughput", "memory", "per_second")
STAGES = [
    {"name": name, "families": ["six"], "epochs": 2, "steps_per_epoch": 6, "texts_per_class": 2}
    for name in ("one", "two")
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def settings(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two stages, of which states are saved every second step."""
    file = tmp_path_factory.mktemp("settings") / "run.json"
    content = {
        "backbone": str(tiny_folder),
        "lora": {"r": 2, "dropout": 0.1},
        "stages": STAGES,
        "merges": ["soup"],
        "baselines": False,
        "permutations": 5,
        "draws": 0,
        "accelerator": "cpu",
        "every_n_train_steps": 2,
    }
    file.write_text(json.dumps(content))
    return file


def start(settings: Path, output: Path, *flags: str) -> "subprocess.Popen[str]":
    words = [sys.executable, "train.py", "--config", str(settings), "--output", str(output), *flags]
    return subprocess.Popen(
        words,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end_in_second_stage(process: "subprocess.Popen[str]", output: Path, signum: int) -> tuple[int, str]:
    """Send a signal once the second stage has saved a state; the exit code and what was said."""
    state = output / "resume" / "2-two" / "state.json"
    while process.poll() is None and not state.is_file():
        time.sleep(0.01)
    os.kill(process.pid, signum)
    _, said = process.communicate()
    return process.returncode, said


@pytest.fixture(scope="module")
def whole(settings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "whole"
    _, said = (process := start(settings, output)).communicate()
    assert process.returncode == 0, said
    return output


def untimed(value: Any) -> Any:
    """Without what depends on the clock, the machine or the name of the folder."""
    if isinstance(value, dict):
        return {key: untimed(item) for key, item in value.items() if not any(word in key for word in CLOCK)}
    return [untimed(item) for item in value] if isinstance(value, list) else value


def check_same(output: Path, whole: Path) -> None:
    for stage in ("1-one", "2-two"):
        file = Path("stages") / stage / "adapter_model.safetensors"
        found, expected = read_tensors(output / file), read_tensors(whole / file)
        assert all(found[name].equal(expected[name]) for name in expected)
        metrics = Path("stages") / stage / "metrics.json"
        assert untimed(read_json(output / metrics)) == untimed(read_json(whole / metrics))
    assert untimed(read_json(output / "report.json")) == untimed(read_json(whole / "report.json"))


def test_a_command_that_was_killed_goes_on_with_the_same_numbers(settings: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    code, said = end_in_second_stage(start(settings, output, "--resume"), output, signal.SIGKILL)
    assert code == -signal.SIGKILL, said
    _, said = (process := start(settings, output, "--resume")).communicate()
    assert process.returncode == 0, said
    check_same(output, whole)


def test_ranks_of_a_command_that_is_stopped_end_without_a_word_of_their_own(settings: Path, tmp_path: Path) -> None:
    """SIGTERM reaches the process that was started; the rank that it has started ends after the same batch.

    With --resume from the start, as in a job that is queued again: the second stage begins with the ranks connected.
    """
    output = tmp_path / "run"
    code, said = end_in_second_stage(start(settings, output, "--devices", "2", "--resume"), output, signal.SIGTERM)
    assert code == 143, said
    assert said.count("stopped by SIGTERM after step") == 1
    assert "Traceback" not in said
