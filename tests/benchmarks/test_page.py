"""The page: goals in plain words, and what a GPU left."""

import json
from pathlib import Path

import pytest

from benchmarks.gpu_merge import main as measure_on_a_device
from benchmarks.readme import GPU_COMMAND, page
from benchmarks.result import Check, Result


def named(
    name: str,
    *,
    ratio: float | None,
    goal: float | None = None,
    checks: tuple[Check, ...] = (),
    seconds: tuple[tuple[float, ...], ...] = (),
) -> Result:
    return Result(
        part="in_process",
        name=name,
        peer_is="a peer",
        ours=1.0,
        peer=2.0,
        ratio=ratio,
        goal=goal,
        checks=checks,
        seconds=seconds,
        repeats=5,
        threads=2,
        command="a command",
    )


def test_goals_are_told_in_plain_words(tmp_path: Path) -> None:
    memory = Check(what="peak memory above the budget", value=412.2, goal=300, unit="MB")
    text = page(
        [
            named("fast", ratio=0.2, goal=0.35),
            named("slow", ratio=0.35001, goal=0.35),
            named("large", ratio=0.9, checks=(memory,)),
            named("without", ratio=3.0),
            named("unknown", ratio=None, goal=1.5),
        ],
        tmp_path,
    )
    goals = text.partition("## Goals\n")[2].partition("\n## ")[0]
    assert "1 of 3 goals are met." in goals
    assert "- Met: fast: ratio 0.2, asked for at most 0.35." in goals
    assert "- **Not met**: slow: ratio 0.35, asked for at most 0.35." in goals
    assert "- **Not met**: large: peak memory above the budget 412 MB, asked for at most 300 MB." in goals
    assert "- **Not told**: unknown." in goals
    assert "without" not in goals
    assert "| without | a peer | 1.000 | 2.000 | 3.00 | - |" in text


def test_without_a_gpu_the_page_says_what_would_measure_it(tmp_path: Path) -> None:
    section = page([], tmp_path).partition("## On a GPU\n")[2]
    assert "Not measured." in section
    assert "`make test-gpu`" in section
    assert f"`{GPU_COMMAND}`" in section


@pytest.mark.filterwarnings("ignore")
def test_what_was_measured_on_a_device_is_shown(tmp_path: Path) -> None:
    file = tmp_path / "gpu_merge.json"
    measure_on_a_device(["--device", "cpu", "--shrink", "256", "--repeats", "1", "--output", str(file)])
    found = json.loads(file.read_text())
    section = page([], tmp_path).partition("## On a GPU\n")[2]
    assert "Not measured" not in section
    assert f"{found['share_of_copy_bandwidth']:.0%} of the copy bandwidth" in section
    assert f"{found['profiler']['launches']} launches" in section
    assert found["command"] in section


def test_training_on_a_device_is_shown_where_it_was_measured(tmp_path: Path) -> None:
    title = "## Training an 8B-shaped model on a GPU\n"
    assert "Not measured" in page([], tmp_path).partition(title)[2].partition("##")[0]
    (tmp_path / "gpu_backbones.json").write_text('{"peak": 12345}')
    section = page([], tmp_path).partition(title)[2].partition("##")[0]
    assert "Not measured" not in section
    assert '"peak": 12345' in section


def test_runs_that_differ_much_are_told(tmp_path: Path) -> None:
    even = named("even", ratio=1.0, seconds=((1.0, 1.4), (2.0, 2.9)))
    uneven = named("uneven", ratio=1.0, seconds=((1.0, 1.1), (2.0, 5.0)))
    assert "Uneven" not in page([even, named("unknown", ratio=1.0)], tmp_path)
    assert "not to be trusted: uneven (2.5 x)." in page([even, uneven], tmp_path)
