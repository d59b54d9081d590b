"""What may be done to a folder that exists."""

import getpass
import json
import platform
import socket
from pathlib import Path

import pytest

from lightning_app.config import StageConfig, TrainConfig
from lightning_app.run_folder import check_folder, environment, make_folder

CONFIG = TrainConfig(seed=1).to_dict()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make_folder(tmp_path / "run", CONFIG)
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
    others = TrainConfig(
        seed=1, resume=True, json=True, offline=True, cache="c", config="f", output="elsewhere"
    ).to_dict()
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
        check_folder(run, changed.to_dict(), resume=True, overwrite=False)
    assert shown in str(error.value)
    assert "\n" not in str(error.value)


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
