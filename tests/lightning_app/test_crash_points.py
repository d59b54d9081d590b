"""Killed at any point of a write of the run folder: the old content or the new one, never else, and the next write succeeds."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_app.checkpoint_io import SafetensorsIO, find_state
from lightning_app.config import LoraConfig, StageConfig, TrainConfig
from lightning_app.run_folder import adopt_changes, check_folder, make_folder
from lightning_app.starting import start_run
from merging import merge_checkpoints
from models.embedder import load_embedder
from models.export import save_adapter
from models.lora import add_lora
from storage.json_file import read_json, write_json
from storage.manifest import verify_manifest
from storage.tensor_file import read_tensors, write_tensors
from tests.storage.crashing import crash_points, order_of


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The death of a process loses nothing that the system was given; only the order of these calls is looked at."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def checkpoint(step: int) -> dict[str, Any]:
    return {
        "epoch": 0,
        "global_step": step,
        "state_dict": {"a": torch.full((3, 2), float(step)), "b": torch.full((4,), float(step))},
    }


def save(path: Path, step: int) -> None:
    SafetensorsIO().save_checkpoint(checkpoint(step), path)


def step_of(path: Path) -> int | None:
    """Which state a resume finds; every part of it must be of one step."""
    folder = find_state(path)
    if folder is None:
        return None
    found = SafetensorsIO().load_checkpoint(folder)
    step = found["global_step"]
    assert all(bool((tensor == step).all()) for tensor in found["state_dict"].values())
    return int(step)


@pytest.mark.parametrize(
    ("before", "exchanges", "forked"),
    [(1, True, True), (1, True, False), (1, False, False), (None, True, False), (None, False, False)],
    ids=["exchange, a process", "exchange", "aside", "the first", "the first, aside"],
)
def test_the_state_of_a_resume(tmp_path: Path, before: int | None, exchanges: bool, forked: bool) -> None:
    state = tmp_path / "run" / "resume" / "1-broad"

    def prepare() -> None:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        if before is not None:
            save(state, before)

    seen = set()
    for point in crash_points(prepare, lambda: save(state, 2), exchanges=exchanges, forked=forked):
        seen.add(step_of(state))
        assert seen <= {before, 2}, point
        save(state, 3)
        assert step_of(state) == 3, point
        assert [path.name for path in state.parent.iterdir()] == ["1-broad"], point
    assert seen == {before, 2}


def test_without_recovery_a_state_moved_aside_would_be_missed(tmp_path: Path) -> None:
    """That `find_state` is needed: the test above would not see it if the fallback had no such moment."""
    state = tmp_path / "1-broad"

    def prepare() -> None:
        shutil.rmtree(tmp_path)
        save(state, 1)

    points = crash_points(prepare, lambda: save(state, 2), exchanges=False)
    assert any(not state.exists() for _ in points)
    assert all(state.exists() for _ in crash_points(prepare, lambda: save(state, 2)))


def test_the_folder_of_a_stage(tmp_path: Path, tiny_folder: Path) -> None:
    embedder = load_embedder(tiny_folder)
    add_lora(embedder, r=2, alpha=4, targets=["q_proj"])
    target = tmp_path / "run" / "stages" / "1-broad"

    def write() -> None:
        files = {"metrics.json": {"epochs": [1, 2]}}
        save_adapter(embedder, target, base_name="tiny", base_folder=tiny_folder, json_files=files, card="a card")

    seen = set()
    for point in crash_points(lambda: shutil.rmtree(tmp_path / "run", ignore_errors=True), write):
        seen.add(target.exists())
        if target.exists():
            verify_manifest(target)
            load_embedder(target)
            continue
        if point.endswith(("0", "5")):
            write()
            assert [path.name for path in target.parent.iterdir()] == ["1-broad"], point
    assert seen == {True, False}


def test_a_file_such_as_metrics_or_a_report(tmp_path: Path) -> None:
    file = tmp_path / "a" / "metrics.json"
    seen = set()
    for _ in crash_points(lambda: write_json(file, {"value": 1}), lambda: write_json(file, {"value": 2})):
        seen.add(read_json(file)["value"])
        write_json(file, {"value": 3})
        assert [path.name for path in file.parent.iterdir()] == ["metrics.json"]
    assert seen == {1, 2}


@pytest.mark.parametrize("exchanges", [True, False], ids=["exchange", "aside"])
def test_the_beginning_of_a_run_over_an_earlier_one(tmp_path: Path, exchanges: bool) -> None:
    folder, old, new = tmp_path / "run", TrainConfig(seed=1), TrainConfig(seed=2)

    def prepare() -> None:
        make_folder(folder, old.to_dict(), {"report.json": {}})

    seen = set()
    for point in crash_points(prepare, lambda: make_folder(folder, new.to_dict()), exchanges=exchanges):
        assert check_folder(folder, old, resume=False, overwrite=True) is False, point
        seed = read_json(folder / "config.json")["seed"]
        assert (folder / "report.json").is_file() == (seed == 1), point
        assert check_folder(folder, TrainConfig(seed=seed), resume=True, overwrite=False)
        seen.add(seed)
    assert seen == {1, 2}


def test_settings_that_a_resume_changes(tmp_path: Path) -> None:
    folder, old = tmp_path / "run", TrainConfig(max_steps=4)
    new = TrainConfig(max_steps=8, resume=True, allow_changes=("max_steps", "data.sha256"))
    there, now = {"data": {"sha256": "0"}}, {"data": {"sha256": "1"}}

    def prepare() -> None:
        make_folder(folder, old.to_dict(), {"inputs.json": there})

    for point in crash_points(prepare, lambda: (adopt_changes(folder, new, now), None)[1]):
        assert check_folder(folder, new, resume=True, overwrite=False), point
        adopt_changes(folder, new, now)
        assert read_json(folder / "config.json")["max_steps"] == 8
        told = [change["name"] for change in read_json(folder / "inputs.json")["changes"]]
        assert set(told) == {"max_steps", "data.sha256"}, point


def test_a_stage_that_is_made_longer(tmp_path: Path) -> None:
    """What came after it is gone, its own state is kept, and nothing in between is taken for the run as it should be."""
    folder = tmp_path / "run"
    stages = (StageConfig(name="broad", epochs=1), StageConfig(name="six", epochs=1))
    old, new = TrainConfig(stages=stages, max_steps=2), TrainConfig(stages=stages, max_steps=4, resume=True)

    def prepare() -> None:
        make_folder(folder, old.to_dict(), {"inputs.json": {"changes": []}})
        for name in ("stages/0-base", "stages/1-broad", "stages/2-six", "merged/soup", "cross-fit/1"):
            write_json(folder / name / "manifest.json", {})
        for name in ("1-broad", "2-six", "cross-fit-1"):
            save(folder / "resume" / name, 1)

    def write() -> None:
        start_run(folder, new, {}, going_on=True)

    for point in crash_points(prepare, write):
        if (folder / "stages" / "1-broad").exists():
            assert read_json(folder / "config.json")["max_steps"] == 2, point  # it will be found again
        if not (folder / "stages" / "2-six" / "manifest.json").exists():
            assert step_of(folder / "resume" / "2-six") is None, point  # of other weights than it would start from
        write()
        left = {path.relative_to(folder).as_posix() for path in folder.glob("*/*")}
        assert left == {"stages/0-base", "resume/1-broad"}, point
        assert read_json(folder / "config.json")["max_steps"] == 4


@pytest.mark.slow
def test_a_merge_over_an_earlier_one(tmp_path: Path) -> None:
    inputs = [tmp_path / "a", tmp_path / "b"]
    for i, each in enumerate(inputs):
        each.mkdir()
        write_tensors(each / "model.safetensors", {"w": torch.full((4, 2), float(i)), "v": torch.full((3,), float(i))})
        (each / "config.json").write_text("{}")
    out = tmp_path / "merged" / "soup"

    def merged(t: float) -> Callable[[], None]:
        return lambda: (merge_checkpoints(inputs, out, method="linear", t=t, overwrite=True), None)[1]

    def prepare() -> None:
        shutil.rmtree(out.parent, ignore_errors=True)
        merged(0.25)()

    seen = set()
    for point in crash_points(prepare, merged(0.75), forked=True):
        found = read_tensors(out / "model.safetensors") if out.exists() else {}
        if found:
            verify_manifest(out)
        seen.add(tuple(sorted({value for tensor in found.values() for value in tensor.flatten().tolist()})))
        assert seen <= {(0.25,), (0.75,), ()}, point
        merged(0.5)()
        assert [path.name for path in out.parent.iterdir()] == ["soup"], point
    assert {(0.25,), (0.75,)} <= seen


def test_what_is_named_is_on_the_disk_before_it_is_named_and_the_name_after(tmp_path: Path) -> None:
    """The order that a loss of power needs: every file, then the folder, then the name, then the folder that holds the name."""
    state = tmp_path / "resume" / "1-broad"
    save(state, 1)
    calls = order_of(lambda: save(state, 2))
    naming = next(i for i, (call, _) in enumerate(calls) if call == "exchange")
    building = calls[naming][1]
    synced = {path for call, path in calls[:naming] if call == "fsync"}
    assert {building, f"{building}/state.json", f"{building}/state.safetensors"} <= synced
    last_write = max(
        i for i, (call, _) in enumerate(calls[:naming]) if call in ("pwrite, second half", "write, second half")
    )
    assert building in {path for call, path in calls[last_write:naming] if call == "fsync"}
    removed = next(i for i, (call, _) in enumerate(calls) if i > naming and call in ("unlink", "rmdir"))
    assert ("fsync", str(state.parent)) in calls[naming:removed]


def test_new_folders_above_are_on_the_disk_before_what_they_hold(tmp_path: Path) -> None:
    calls = order_of(lambda: save(tmp_path / "run" / "resume" / "1-broad", 1))
    for above, made in ((tmp_path, "run"), (tmp_path / "run", "resume")):
        at = calls.index(("mkdir", str(above / made)))
        assert ("fsync", str(above)) == calls[at + 1]


def test_a_setting_of_the_adapter_is_never_allowed(tmp_path: Path) -> None:
    make_folder(tmp_path / "run", TrainConfig().to_dict())
    changed = TrainConfig(lora=LoraConfig(r=32), resume=True, allow_changes=("lora",))
    with pytest.raises(ValueError, match=r"lora\.r: .* before, 32 now.*the saved weights belong to it"):
        check_folder(tmp_path / "run", changed, resume=True, overwrite=False)
