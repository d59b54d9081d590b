"""What is refused before torch is imported, and what is left to the commands."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_app.config import EvaluateConfig, MergeConfig, TrainConfig
from lightning_app.early import check_evaluate, check_merge, check_train
from models.locate import UnreachableModel
from tests.models.fake_hub import CLOSED, empty_cache, use_hub

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "lightning", "transformers", "sentence_transformers", "peft", "numpy"}
E5 = "intfloat/e5-mistral-7b-instruct"


@pytest.mark.parametrize(
    "words",
    [
        ["train.py", "--backbone", "e5-mistral"],
        ["train.py", "--backbone", "e5-mistral", "--offline"],
        ["evaluate.py", "tiny-llm", E5],
        ["merge.py", "--method", "linear", "--inputs", "e5-mistral@main"],
    ],
)
def test_an_unreachable_model_is_refused_before_the_heavy_imports(words: list[str], tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *words, "--cache", str(tmp_path), "--output", str(tmp_path / "out")],
        cwd=ROOT,
        env={**environment, "HF_ENDPOINT": CLOSED},
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert (done.returncode, done.stdout, len(said)) == (2, "", 1)
    assert said[0].startswith(f"error: model {E5}: expected it on the hub or in its cache")
    assert "models" in loaded
    assert not loaded & HEAVY
    assert empty_cache(tmp_path)


def configs(folder: Path) -> list[tuple[Callable[..., None], TrainConfig | EvaluateConfig | MergeConfig]]:
    output, cache = str(folder / "out"), str(folder / "cache")
    return [
        (check_train, TrainConfig(backbone="tiny-llm", output=output, cache=cache)),
        (check_evaluate, EvaluateConfig(models=("tiny-llm",), output=output, cache=cache)),
        (check_merge, MergeConfig(method="linear", inputs=("tiny-llm",), output=output, cache=cache)),
    ]


def named(config: TrainConfig | EvaluateConfig | MergeConfig, model: str) -> dict[str, object]:
    """The setting that names a model."""
    if isinstance(config, TrainConfig):
        return {"backbone": model}
    return {"models": (model,)} if isinstance(config, EvaluateConfig) else {"inputs": (model,)}


def test_what_can_be_done_is_let_pass_and_nothing_is_written(tmp_path: Path) -> None:
    for check, config in configs(tmp_path):
        check(config)
        check(replace(config, **named(config, "tiny-encoder")))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("tiny-lm", "did you mean 'tiny-llm'"),
        ("./absent", r"expected a folder, found none at \./absent"),
        ("owner/name", "model owner/name: expected it on the hub or in its cache"),
    ],
)
def test_a_model_that_is_not_there_is_refused(
    model: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub(monkeypatch, CLOSED)
    for check, config in configs(tmp_path):
        with pytest.raises(ValueError, match=said):
            check(replace(config, **named(config, model)))  # type: ignore[arg-type]


def test_an_output_that_is_taken_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    for check, config in configs(tmp_path):
        with pytest.raises(ValueError, match=f"output folder {tmp_path / 'out'}: expected a name that is free"):
            check(config)
        if not isinstance(config, MergeConfig):
            with pytest.raises(ValueError, match="--overwrite .*expected an earlier output of embarc"):
                check(replace(config, overwrite=True))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    absent, kept = str(tmp_path / "absent.csv"), str(tmp_path / "kept.csv")
    Path(kept).touch()
    (train, a), (evaluate, b), (merge, c) = configs(tmp_path)
    for check, config in (
        (train, replace(a, data=absent)),  # type: ignore[call-arg]
        (train, replace(a, data=kept, eval_data=absent)),  # type: ignore[call-arg]
        (evaluate, replace(b, suite=("large", absent))),  # type: ignore[call-arg]
        (evaluate, replace(b, mteb=(absent,))),  # type: ignore[call-arg]
        (merge, replace(c, recipe=absent)),  # type: ignore[call-arg]
    ):
        with pytest.raises(ValueError, match=f"{absent}: expected .*found none; check the path"):
            check(config)


def test_an_unknown_method_is_told_before_the_models_are_looked_up(tmp_path: Path) -> None:
    config = MergeConfig(method="slurp", inputs=("a", "b"), output=str(tmp_path / "out"))
    with pytest.raises(ValueError, match="--method: expected .* got 'slurp'; did you mean slerp"):
        check_merge(config)
    check_merge(replace(config, method=None))


def test_a_plan_asks_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.locate.check_reachable", lambda *_, **__: pytest.fail("it was looked up"))
    check_train(TrainConfig(backbone="e5-mistral", plan=True, output=str(tmp_path)))
    check_merge(MergeConfig(method="linear", inputs=("e5-mistral",), plan=True, output=str(tmp_path)))


@pytest.mark.parametrize("variable", ["LOCAL_RANK", "NODE_RANK", "RANK"])
def test_only_the_first_process_of_a_run_looks(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    config = TrainConfig(backbone="e5-mistral", offline=True, cache=str(tmp_path), output=str(tmp_path / "out"))
    monkeypatch.setenv(variable, "1")
    check_train(config)
    monkeypatch.setenv(variable, "0")
    with pytest.raises(ValueError, match="output folder"):
        check_train(config)
    with pytest.raises(UnreachableModel):
        check_train(replace(config, output=str(tmp_path / "free")))


def test_a_finished_evaluation_is_shown_again_without_its_models(tmp_path: Path) -> None:
    config = EvaluateConfig(models=("owner/gone",), output=str(tmp_path), resume=True, offline=True)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    with pytest.raises(UnreachableModel):
        check_evaluate(config)
    (tmp_path / "report.json").write_text("{}")
    check_evaluate(config)
