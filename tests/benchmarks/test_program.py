"""``python -m benchmarks``: parts, files, what is kept, and the peers that are not installed in tests played by a script."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import merge_commands, merge_sizes, mergekit, mergekit_agreement
from benchmarks.__main__ import HERE, PARTS, main
from benchmarks.readme import SECTIONS
from benchmarks.result import Check, Result, read_results, write_results

STAND_IN = """#!{python} -IS
import shutil, sys
from pathlib import Path
assert Path(sys.argv[1]).read_text().count("merge_method") == 1
output = Path(sys.argv[2])
shutil.copytree(output.with_name(output.name.replace("mergekit", "ours")), output)
if output.name in {spoiled}:
    file = output / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
"""
"""Plays mergekit: copies what our command wrote, and spoils the last number where it is told to."""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def install(*spoiled: str) -> None:
        file = tmp_path / "mergekit-yaml"
        file.write_text(STAND_IN.format(python=sys.executable, spoiled=set(spoiled) or "()"))
        file.chmod(0o755)
        monkeypatch.setattr(mergekit, "command", lambda: file)

    return install


def result(part: str, **told: Any) -> Result:
    common: dict[str, Any] = {"name": "a name", "peer_is": "a peer", "ours": 1.0, "peer": 4.0, "ratio": 0.25}
    return Result(part=part, **{**common, "repeats": 5, "threads": 2, "command": "a command", **told})


def test_a_quick_run_writes_both_files_without_mergekit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mergekit, "command", lambda: pytest.fail("mergekit was asked for"))
    (tmp_path / "scratch").mkdir()
    assert main(["--quick", "--output", str(tmp_path / "out"), "--scratch", str(tmp_path / "scratch")]) == 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {row["part"] for row in rows} == {"in_process", "evaluation", "training", "merge_sizes"}
    for row in rows:
        assert {"name", "ours", "peer", "ratio", "command"} <= row.keys()
        assert row["ratio"] is None or row["ratio"] == pytest.approx(row["ours"] / row["peer"])
        assert row["command"] == f"python -m benchmarks {row['part']}"
    page = (tmp_path / "out" / "README.md").read_text()
    assert all(f"| {row['name']} |" in page for row in rows)
    assert "A quick run on tiny inputs" in page
    assert "## Goals" not in page
    assert "Not measured; `python -m benchmarks mergekit_agreement` does." in page
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_part_that_is_run_again_replaces_itself_only(tmp_path: Path) -> None:
    kept, old = result("merge_sizes", name="kept", checks=[], seconds=[[1.0], [4.0]]), result("in_process", name="old")
    write_results(tmp_path / "results.json", [old, kept])
    main(["in_process", "--quick", "--output", str(tmp_path)])
    found = read_results(tmp_path / "results.json")
    assert kept in found
    assert old not in found
    assert [each.part for each in found] == ["in_process"] * 3 + ["merge_sizes"]


def test_whole_commands_take_turns_and_their_outputs_are_compared(
    tmp_path: Path, stand_in: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in("mergekit")
    monkeypatch.setattr(merge_commands, "CASES", (("linear", 2, 0.35),))
    main(["merge_commands", "--quick", "--output", str(tmp_path)])
    (found,) = read_results(tmp_path / "results.json")
    assert found.goal == 0.35
    details = dict(found.details or {})
    # one bit in the high byte of one bfloat16: its sign and exponent, so far more than a unit in the last place
    assert found.checks[0].value == details["difference"]["of_result"] > 1
    assert 0 < details["difference"]["share"] < 1e-5
    assert details["difference_under_compat"]["share"] > 0
    assert details["peer_peak_bytes"] < 120e6 < details["peak_bytes"]
    page = (tmp_path / "README.md").read_text()
    assert "| linear of 2, 0.032 GB each |" in page
    assert "linear: ours and mergekit's differ in" in page


def test_agreement_is_measured_for_each_method(
    tmp_path: Path, stand_in: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in("mergekit-ties")
    cases = {method: mergekit_agreement.CASES[method] for method in ("passthrough", "ties")}
    monkeypatch.setattr(mergekit_agreement, "CASES", cases)
    main(["mergekit_agreement", "--quick", "--output", str(tmp_path)])
    same, spoiled = read_results(tmp_path / "results.json")
    assert (same.checks[0].value, same.checks[0].met) == (0, True)
    assert not spoiled.checks[0].met
    page = (tmp_path / "README.md").read_text()
    assert "| passthrough | 0.0e+00 | equal in all | 1e-05 | yes |" in page
    assert f"| ties | {spoiled.checks[0].value:.1e} | `lm_head.weight`" in page
    assert page.count("| **no** |") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["merge_sise"],
            "PART: expected some of in_process, evaluation, merge_commands, merge_sizes, .*got merge_sise",
        ),
        (["--repeats", "0"], "--repeats: expected 1 or more, got 0"),
        (["--quick", "--output", str(HERE)], "--output: expected another folder than"),
    ],
)
def test_a_mistake_ends_the_program_before_anything_is_run(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_an_old_results_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text('[{"name": "a", "ours": 1}]')
    with pytest.raises(SystemExit):
        main(["in_process", "--quick", "--output", str(tmp_path)])
    assert "expected results of this program, got another layout" in capsys.readouterr().err


def test_a_disk_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Usage:
        free = 10**6

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    for part in ("merge_commands", "merge_sizes"):
        with pytest.raises(SystemExit):
            main([part, "--output", str(tmp_path)])
        assert "GB of free space, got" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()


def test_sizes_that_the_disk_has_no_room_for_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 6 * merge_sizes.SIZES[1].bytes

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    monkeypatch.setattr(
        merge_sizes,
        "_measure_one",
        lambda size, settings: result(
            "merge_sizes",
            details={"bytes_of_inputs_and_output": 3 * size.bytes},
            ours=2 + size.bytes / 1e9,
            peer=1 + size.bytes / 2e9,
        ),
    )
    *sizes, slope = merge_sizes.measure(merge_sizes.Settings(scratch=tmp_path))
    assert len(sizes) == 2
    assert slope.unit == "s/GB"
    assert slope.note == "Left out for lack of disk: 3.8 GB each."
    assert slope.ours == pytest.approx(1 / 3)
    assert slope.peer == pytest.approx(1 / 6)
    assert slope.ratio == pytest.approx(2)
    assert slope.goals == [Check(what="ratio", value=slope.ratio or 0, goal=1.5)]


def test_a_slope_below_noise_has_no_ratio() -> None:
    close = [result("merge_sizes", ours=2.0 - n, details={"bytes_of_inputs_and_output": n}) for n in (0, 1)]
    slope = merge_sizes._slope(close)
    assert slope.ratio is None
    assert "noise is larger" in slope.note
    assert slope.goals == []


def test_every_part_has_a_section() -> None:
    assert SECTIONS.keys() == PARTS.keys()
