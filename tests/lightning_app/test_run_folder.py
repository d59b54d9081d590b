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
from lightning_app.run_folder import check_folder, environment, make_folder

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
