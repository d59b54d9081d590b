"""What may be done to a folder that exists."""

import copy
import getpass
import json
import platform
import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_app.config import EvaluateConfig, LoraConfig, StageConfig, TrainConfig
from lightning_app.run_folder import adopt_changes, check_folder, environment, make_folder, other_packages

CONFIG = TrainConfig(seed=1)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make_folder(tmp_path / "run", CONFIG.to_dict())
    (tmp_path / "run" / "report.md").write_text("kept?")
    return tmp_path / "run"


@pytest.mark.parametrize(("resume", "overwrite"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("there", [True, False])
def test_an_absent_or_empty_folder_is_a_fresh_start(tmp_path: Path, resume: bool, overwrite: bool, there: bool) -> None:
    folder = tmp_path / "run"
    if there:
        folder.mkdir()
    assert check_folder(folder, CONFIG, resume=resume, overwrite=overwrite) is False
    assert folder.exists() == there


def test_an_existing_run_is_refused_without_a_flag(run: Path) -> None:
    with pytest.raises(ValueError, match="run: expected a name that is free, got one that exists; .*--overwrite"):
        check_folder(run, CONFIG, resume=False, overwrite=False)
    assert (run / "report.md").read_text() == "kept?"


def test_a_run_is_resumed_with_its_settings(run: Path) -> None:
    assert check_folder(run, CONFIG, resume=True, overwrite=False) is True
    others = TrainConfig(seed=1, resume=True, json=True, offline=True, cache="c", config="f", output="elsewhere")
    assert check_folder(run, others, resume=True, overwrite=False) is True


@pytest.mark.parametrize(
    ("changed", "shown"),
    [
        (TrainConfig(seed=2), "seed: 1 before, 2 now"),
        (TrainConfig(seed=1, backbone="e5-mistral"), "backbone: 'tiny-llm' before, 'e5-mistral' now"),
        (TrainConfig(seed=1, merges=("soup",)), "merges.1: 'karcher' before, None now"),
        (
            TrainConfig(seed=1, stages=(StageConfig(name="broad", families=("broad",), epochs=9),)),
            "stages.0.epochs: 3 before, 9 now",
        ),
    ],
)
def test_a_resume_with_other_settings_shows_the_difference(run: Path, changed: TrainConfig, shown: str) -> None:
    with pytest.raises(ValueError, match="--resume .*run: expected the settings of the run") as error:
        check_folder(run, changed, resume=True, overwrite=False)
    assert shown in str(error.value)
    assert "\n" not in str(error.value)


def _without(content: dict[str, Any], *places: tuple[Any, ...]) -> dict[str, Any]:
    """The content of config.json as it was before the settings at these places were known."""
    older = copy.deepcopy(content)
    for *above, key in places:
        part = older
        for step in above:
            part = part[step]
        del part[key]
    return older


NEWER = [
    ("dtype",),
    ("lora", "use_dora"),
    ("stages", 0, "patience"),
    ("stages", 1, "classes"),
    ("merges",),
    ("stages",),
]
"""Settings of every kind: plain, nested, in a list of stages, a list, and all the stages."""


@pytest.mark.parametrize("places", [*([place] for place in NEWER), NEWER[:-1], [("lora",)]], ids=str)
def test_a_run_that_is_older_than_a_setting_was_made_with_its_default(run: Path, places: list[tuple[Any, ...]]) -> None:
    (run / "config.json").write_text(json.dumps(_without(CONFIG.to_dict(), *places)))
    assert check_folder(run, CONFIG, resume=True, overwrite=False) is True


@pytest.mark.parametrize(
    ("place", "changed", "shown"),
    [
        (("dtype",), TrainConfig(seed=1, dtype="bfloat16"), "dtype: None before, 'bfloat16' now"),
        (
            ("lora", "use_dora"),
            TrainConfig(seed=1, lora=LoraConfig(use_dora=True)),
            "lora.use_dora: False before, True",
        ),
        (
            ("stages", 1, "patience"),
            replace(CONFIG, stages=(CONFIG.stages[0], replace(CONFIG.stages[1], patience=5))),
            "stages.1.patience: 2 before, 5 now",
        ),
        (("merges",), TrainConfig(seed=1, merges=("soup",)), "merges.1: 'karcher' before, None now"),
    ],
)
def test_a_setting_that_an_older_run_did_not_know_is_compared_with_its_default(
    run: Path, place: tuple[Any, ...], changed: TrainConfig, shown: str
) -> None:
    (run / "config.json").write_text(json.dumps(_without(CONFIG.to_dict(), place)))
    with pytest.raises(ValueError, match=re.escape(shown)):
        check_folder(run, changed, resume=True, overwrite=False)


def test_a_setting_that_has_no_default_or_is_no_longer_known_is_a_difference(tmp_path: Path) -> None:
    now = EvaluateConfig(models=("tiny-llm",))
    make_folder(tmp_path / "out", _without(now.to_dict(), ("models",)) | {"gone": 3})
    with pytest.raises(ValueError, match=re.escape("gone: 3 before, None now; models.0: None before, 'tiny-llm' now")):
        check_folder(tmp_path / "out", now, resume=True, overwrite=False)


def test_overwriting_a_run_is_allowed_and_empties_it(run: Path) -> None:
    assert check_folder(run, CONFIG, resume=False, overwrite=True) is False
    assert (run / "report.md").exists()
    make_folder(run, TrainConfig(seed=5).to_dict())
    assert [path.name for path in run.iterdir()] == ["config.json"]
    assert json.loads((run / "config.json").read_text())["seed"] == 5


@pytest.mark.parametrize(
    "config", [None, '{"model_type": "bert", "hidden_size": 8}', "[]"], ids=["no config", "a model's config", "a list"]
)
def test_a_folder_that_is_not_ours_is_neither_replaced_nor_resumed(tmp_path: Path, config: str | None) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match="--overwrite .*: expected an earlier output of embarc"):
        check_folder(tmp_path, CONFIG, resume=False, overwrite=True)
    with pytest.raises(ValueError, match="--resume .*: expected an earlier run"):
        check_folder(tmp_path, CONFIG, resume=True, overwrite=False)
    assert (tmp_path / "thesis.tex").exists()


def test_both_flags_are_refused(run: Path) -> None:
    with pytest.raises(ValueError, match="--resume and --overwrite: expected one of them, got both"):
        check_folder(run, CONFIG, resume=True, overwrite=True)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ValueError, match="run: expected a folder or nothing, got a file"):
        check_folder(tmp_path / "run", CONFIG, resume=False, overwrite=True)


def test_the_environment_names_versions_and_neither_host_nor_user() -> None:
    found = environment()
    assert set(found) == {"python", "platform", "packages", "threads", "devices"}
    assert {"torch", "lightning", "transformers", "peft"} <= set(found["packages"])
    written = json.dumps(found)
    names = {socket.gethostname(), platform.node(), str(Path.home()), str(Path.cwd())} - {"", "localhost", "/"}
    assert not [name for name in names if name in written]
    assert f'"{getpass.getuser()}"' not in written


def resumed(**settings: Any) -> TrainConfig:
    return TrainConfig(seed=1, resume=True, **settings)


def test_what_changes_no_number_is_not_compared(run: Path) -> None:
    now = resumed(num_workers=3, timeout=5.0, every_n_train_steps=7)
    assert check_folder(run, now, resume=True, overwrite=False) is True


def test_changes_are_allowed_by_name(run: Path) -> None:
    now = resumed(devices=2, max_steps=9, stages=(replace(CONFIG.stages[0], epochs=9), CONFIG.stages[1]))
    with pytest.raises(ValueError, match="--allow-changes devices max_steps stages.0.epochs$"):
        check_folder(run, now, resume=True, overwrite=False)
    with pytest.raises(ValueError, match=r"got others \(max_steps: -1 before, 9 now\); .*--allow-changes max_steps$"):
        check_folder(run, replace(now, allow_changes=("devices", "stages")), resume=True, overwrite=False)
    for allowed in (("devices", "stages.0.epochs", "max-steps"), ("--devices", "stages", "max_steps")):
        assert check_folder(run, replace(now, allow_changes=allowed), resume=True, overwrite=False) is True


def test_a_name_that_is_none_is_refused_with_the_closest(run: Path) -> None:
    with pytest.raises(ValueError, match="--allow-changes device: expected a setting by its name.*closest: devices"):
        check_folder(run, resumed(allow_changes=("device",)), resume=True, overwrite=False)
    with pytest.raises(ValueError, match="--allow-changes all: expected a setting"):
        check_folder(run, resumed(allow_changes=("all",)), resume=True, overwrite=False)


@pytest.mark.parametrize("there", [True, False])
def test_allowing_changes_needs_a_resume(run: Path, there: bool) -> None:
    folder = run if there else run / "not"
    with pytest.raises(ValueError, match="--allow-changes devices data: expected --resume beside it, got none"):
        check_folder(folder, TrainConfig(allow_changes=("devices", "data")), resume=False, overwrite=there)


def test_up_to_eight_differences_are_told(run: Path) -> None:
    now = resumed(devices=2, max_steps=9, permutations=3, draws=4, temperature=0.5, objective="infonce", strategy="ddp")
    now = replace(now, precision="bf16-mixed", gradient_clip_val=2.0, average="ema")
    with pytest.raises(ValueError, match=r"; and 2 more\);") as error:
        check_folder(run, now, resume=True, overwrite=False)
    assert str(error.value).count(" before, ") == 8


def test_another_content_of_a_data_file_is_seen(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("one")
    config = TrainConfig(data=str(data))
    inputs = {"data": {"sha256": "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"}}
    make_folder(tmp_path / "run", config.to_dict(), {"inputs.json": {**inputs, "changes": []}})
    again = replace(config, resume=True)
    assert check_folder(tmp_path / "run", again, resume=True, overwrite=False) is True
    data.write_text("two")
    with pytest.raises(
        ValueError, match=r"data\.sha256: 7692c3ad3540 before, 3fc4ccfe7458 now.*--allow-changes data\.sha256"
    ):
        check_folder(tmp_path / "run", again, resume=True, overwrite=False)
    for allowed in ("data.sha256", "data"):
        now = replace(again, allow_changes=(allowed,))
        assert check_folder(tmp_path / "run", now, resume=True, overwrite=False) is True
    (tmp_path / "moved.jsonl").write_text("one")
    moved = replace(again, data=str(tmp_path / "moved.jsonl"))
    with pytest.raises(ValueError, match=r"\(data: '.*data.jsonl' before, '.*moved.jsonl' now\)"):
        check_folder(tmp_path / "run", moved, resume=True, overwrite=False)


def test_the_backbone_is_compared_once_it_is_known(run: Path) -> None:
    (run / "inputs.json").write_text(json.dumps({"backbone": {"commit": "a" * 40}, "changes": []}))
    assert check_folder(run, resumed(), resume=True, overwrite=False) is True
    with pytest.raises(ValueError, match="backbone.commit: aaaaaaaaaaaa before, bbbbbbbbbbbb now"):
        check_folder(run, resumed(), resume=True, overwrite=False, backbone=lambda: {"backbone": {"commit": "b" * 40}})


def test_what_a_resume_goes_on_with_is_what_the_next_one_compares_with(run: Path) -> None:
    now = resumed(devices=2, allow_changes=("devices",))
    assert [str(each) for each in adopt_changes(run, now, {})] == ["devices: 1 before, 2 now"]
    assert adopt_changes(run, now, {}) == []
    assert check_folder(run, resumed(devices=2), resume=True, overwrite=False) is True
    with pytest.raises(ValueError, match="devices: 2 before, 1 now"):
        check_folder(run, resumed(), resume=True, overwrite=False)
    assert json.loads((run / "config.json").read_text())["allow_changes"] == []


def test_packages_of_another_version_are_told(run: Path) -> None:
    assert other_packages(run) == []
    packages = environment()["packages"]
    (run / "environment.json").write_text(json.dumps({"packages": packages | {"torch": "1.0"}}))
    assert other_packages(run) == [f"torch 1.0 before, {packages['torch']} now"]


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "large disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "large disk")
    make_folder(tmp_path / "run", CONFIG.to_dict())
    assert (tmp_path / "run").is_symlink()
    assert (tmp_path / "large disk" / "config.json").is_file()
