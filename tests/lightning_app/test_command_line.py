"""Flags, files and exit codes: what is won over by what, and how a mistake is told."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lightning_app.command_line import main, parse
from lightning_app.config import EvaluateConfig, MergeConfig, StageConfig, TrainConfig
from lightning_app.pretrain_config import PretrainConfig
from storage.tensor_file import write_tensors

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "lightning", "transformers", "sentence_transformers", "peft", "sklearn", "numpy", "matplotlib")


def write(folder: Path, content: str, name: str = "run.json") -> str:
    (folder / name).write_text(content)
    return str(folder / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "run.json",
            '{"seed": 3, "temperature": 1, "lora": {"r": 4}, "stages": [{"name": "one", "families": ["even", "odd"]}]}',
        ),
        ("run.yaml", "seed: 3\ntemperature: 1\nlora: {r: 4}\nstages:\n- name: one\n  families: [even, odd]\n"),
        ("run.yml", "{seed: 3, temperature: 1, lora: {r: 4}, stages: [{name: one, families: [even, odd]}]}"),
    ],
)
def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path, name: str, content: str) -> None:
    file = write(tmp_path, content, name)
    found = parse(TrainConfig, ["--seed", "9", "--config", file, "--stages.0.epochs", "2"])
    assert found.seed == 9
    assert (found.temperature, found.lora.r, found.lora.alpha) == (1.0, 4, 32)
    assert isinstance(found.temperature, float)
    assert found.stages == (StageConfig(name="one", families=("even", "odd"), epochs=2),)
    assert found.config == file
    assert parse(TrainConfig, [f"--config={file}"]).seed == 3


def test_no_flags_are_the_defaults() -> None:
    assert parse(TrainConfig, []) == TrainConfig()
    assert parse(PretrainConfig, []) == PretrainConfig()


def test_flags_reach_nested_settings() -> None:
    found = parse(
        TrainConfig, ["--stages.1.families", "even", "primes", "--lora.targets", "q_proj", "--merges", "soup", "--json"]
    )
    assert found.stages[1].families == ("even", "primes")
    assert (found.lora.targets, found.merges, found.json) == (("q_proj",), ("soup",), True)
    assert found.stages[0] == TrainConfig().stages[0]


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_what_a_run_wrote_can_be_asked_for_again(tmp_path: Path, suffix: str) -> None:
    """JSON is YAML too."""
    chosen = TrainConfig(
        stages=tuple(StageConfig(name=name, families=("six",), classes=3) for name in "abc"),
        data="x.csv",
        merges=("soup",),
    )
    file = write(tmp_path, json.dumps(chosen.to_dict()), f"config.{suffix}")
    assert parse(TrainConfig, ["--config", file]) == replace(chosen, config=file)


def test_required_settings_may_come_from_either_side(tmp_path: Path) -> None:
    file = write(tmp_path, '{"method": "slerp", "inputs": ["a", "b"], "t": 1}')
    found = parse(MergeConfig, ["--config", file, "--output", "o"])
    assert (found.method, found.inputs, found.output, found.t) == ("slerp", ("a", "b"), "o", 1.0)
    with pytest.raises(ValueError, match="--output"):
        parse(MergeConfig, ["--config", file])


def test_models_are_positional(tmp_path: Path) -> None:
    found = parse(EvaluateConfig, ["a", "b", "--base", "c", "--suite", "large"], positional="models")
    assert (found.models, found.base, found.suite) == (("a", "b"), "c", ("large",))
    file = write(tmp_path, '{"models": ["m"], "seed": 4}')
    assert parse(EvaluateConfig, ["--config", file], positional="models").models == ("m",)
    with pytest.raises(ValueError, match="models: expected at least one, got none; see python .* --help"):
        parse(EvaluateConfig, [], positional="models")


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--bakcbone", "x"], ["--bakcbone", "--backbone"]),
        (["--lora.rank", "4"], ["--lora.rank"]),
        (["--temprature", "4"], ["--temprature", "--temperature"]),
        (["--seed", "x"], ["--seed", "'x'"]),
        (["--seed"], ["--seed"]),
        (["--merges", "soups"], ["'soups'", "'soup'"]),
        (["--strategy", "dpp"], ["'dpp'", "'ddp'"]),
        (["extra"], ["extra"]),
        (["--config"], ["--config"]),
    ],
)
def test_a_mistaken_flag_is_one_line_with_the_closest(
    argv: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(TrainConfig, "no_such_module:never_called", argv=argv) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: ")
    assert all(part in err for part in parts), err
    assert "--help" in err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", '{"sed": 1}', "run.json: expected settings of TrainConfig, got 'sed'; closest: seed"),
        ("run.json", '{"zzzzz": 1}', "got 'zzzzz'; closest: none"),
        ("run.json", '{"lora": {"rr": 1}}', "run.json: lora: expected settings of LoraConfig, got 'rr'; closest: r"),
        ("run.json", '{"stages": [{"name": "a", "epoch": 2}]}', "stages.0: .* got 'epoch'; closest: epochs"),
        ("run.yaml", "1: 2", "got 1; closest: none"),
        ("run.json", '{"seed": "3"}', "run.json: seed: expected int, got '3'"),
        ("run.json", '{"seed": 3.5}', "seed: expected int, got 3.5"),
        ("run.json", '{"seed": true}', "seed: expected int, got True"),
        ("run.json", '{"seed": null}', "seed: expected int, got None"),
        ("run.json", '{"json": 1}', "json: expected bool, got 1"),
        ("run.json", '{"temperature": "warm"}', "temperature: expected float, got 'warm'"),
        ("run.json", '{"adapt_top": "two"}', "adapt_top: expected int, got 'two'"),
        ("run.json", '{"strategy": "dpp"}', "strategy: expected auto or ddp or ddp_fork or fsdp, got 'dpp'"),
        ("run.json", '{"merges": "soup"}', "merges: expected a list, got 'soup'"),
        (
            "run.json",
            '{"merges": ["soup", 3]}',
            "merges.1: expected soup or karcher or slerp or linear or last or search, got 3",
        ),
        ("run.json", '{"stages": ["a"]}', "stages.0: expected settings by name, got 'a'"),
        ("run.json", "[1]", "expected settings by name, got list"),
        ("run.json", '{"seed": 1,}', "run.json, line 1: expected JSON"),
        ("run.json", '{"seed": 1, "seed": 2}', "'seed' twice"),
        ("run.yaml", "seed: !!python/name:os.system", "run.yaml, line 1"),
        ("run.yaml", "seed: 1\nseed: 2", "'seed' twice"),
        ("run.toml", "seed = 1", "expected a .json or .yaml file, got the suffix '.toml'"),
    ],
)
def test_a_mistaken_file_is_one_line_that_names_it(
    tmp_path: Path, name: str, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--config", write(tmp_path, content, name)]
    with pytest.raises(ValueError, match=message) as error:
        parse(TrainConfig, argv)
    assert name in str(error.value)
    assert main(TrainConfig, "no_such_module:never_called", argv=argv) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"--config absent.json: expected a file, found none"):
        parse(TrainConfig, ["--config", "absent.json"])


def test_a_stage_without_a_name_is_asked_for_by_its_flag(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--stages\.0\.name"):
        parse(TrainConfig, ["--config", write(tmp_path, '{"stages": [{"epochs": 2}]}')])


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A command of the tests."""

    end: str = "well"
    """How it ends."""
    json: bool = False
    """Print JSON."""


def stub(config: Asked) -> dict[str, Any]:
    print("at work")
    if config.end == "sigterm":
        raise SystemExit
    if config.end == "ctrl-c in a fit":
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)
    errors: dict[str, BaseException] = {
        "mistake": ValueError("expected this,\n  got that"),
        "failure": RuntimeError("the loss\nis not finite"),
        "disk": OSError(28, "No space left on device"),
        "ctrl-c": KeyboardInterrupt(),
    }
    if config.end in errors:
        raise errors[config.end]
    return {"output": "runs/x", "rows": [{"name": "a", "silhouette": None}]}


@pytest.fixture
def target() -> Iterator[str]:
    module = ModuleType("stub_command")
    module.run = stub  # type: ignore[attr-defined]
    sys.modules["stub_command"] = module
    yield "stub_command:run"
    del sys.modules["stub_command"]


@pytest.mark.parametrize(
    ("end", "code", "last"),
    [
        ("well", 0, None),
        ("mistake", 2, "error: expected this, got that"),
        ("failure", 1, "failed: the loss is not finite"),
        ("disk", 1, "failed: [Errno 28] No space left on device"),
        ("ctrl-c", 130, "interrupted"),
        ("ctrl-c in a fit", 130, "interrupted"),
        ("sigterm", 143, "interrupted"),
    ],
)
def test_exit_codes(target: str, end: str, code: int, last: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(Asked, target, argv=["--end", end]) == code
    err = capsys.readouterr().err.splitlines()
    assert (err[-1] if err else None) == last
    assert ("Traceback (most recent call last):" in err) == (code == 1)
    assert code != 2 or len(err) == 1


@pytest.mark.parametrize(("end", "code", "out"), [("well", 0, "at work\nat work\n"), ("mistake", 2, "at work\n")])
def test_what_is_checked_early_comes_before_the_import_of_the_command(
    target: str, end: str, code: int, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--end", end]
    assert main(Asked, target if code == 0 else "absent_module:run", argv=argv, early=target) == code
    assert capsys.readouterr().out == out


def test_json_is_one_object_on_the_last_line(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(Asked, target, argv=["--json"]) == 0
    *before, last = capsys.readouterr().out.splitlines()
    assert before == ["at work"]
    assert json.loads(last) == stub(Asked())
    capsys.readouterr()
    assert main(Asked, target, argv=[]) == 0
    assert capsys.readouterr().out == "at work\n"


def python(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("script", ["train.py", "merge.py", "evaluate.py", "pretrain.py"])
def test_help_is_shown_without_loading_what_trains(script: str) -> None:
    done = python("-X", "importtime", script, "--help")
    assert done.returncode == 0
    assert "--output" in done.stdout
    assert "--config" in done.stdout
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "lightning_app" in loaded
    assert not loaded & set(HEAVY)


def test_a_mistake_in_a_script_is_exit_2_and_one_line() -> None:
    for words, flag in ((["--method", "slerp"], "--output"), (["--method", "slerp", "--output", "x"], "--inputs")):
        done = python("merge.py", *words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert flag in done.stderr


def test_merging_folders_loads_neither_a_trainer_nor_a_model_class(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 3.0)):
        (tmp_path / name).mkdir()
        write_tensors(tmp_path / name / "model.safetensors", {"w": torch.full((3, 2), value)}, {"format": "pt"})
        (tmp_path / name / "config.json").write_text("{}")
    code = (
        "import sys\n"
        "from lightning_app.config import MergeConfig\n"
        "from lightning_app.merging import merge\n"
        f"folder = {str(tmp_path)!r}\n"
        "merge(MergeConfig(method='linear', inputs=(folder + '/a', folder + '/b'), output=folder + '/out'))\n"
        "print(*{name.partition('.')[0] for name in sys.modules})\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "torch" in loaded
    assert not loaded & {"lightning", "transformers", "sentence_transformers", "peft"}
    assert (tmp_path / "out" / "merge.json").is_file()
