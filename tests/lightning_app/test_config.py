"""The knobs: frozen, described, written by a module that loads at once."""

import ast
import dataclasses
import inspect
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest

from lightning_app import config
from lightning_app.command_line import parse
from lightning_app.config import (
    EvaluateConfig,
    LoraConfig,
    MergeConfig,
    StageConfig,
    TrainConfig,
)
from lightning_app.pretrain_config import PretrainConfig

CONFIGS = (LoraConfig, StageConfig, TrainConfig, MergeConfig, EvaluateConfig, PretrainConfig)


def test_the_module_needs_the_standard_library_only() -> None:
    check = "import sys, lightning_app.config; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-S", "-c", check], capture_output=True, text=True, check=True
    ).stdout.split()
    outside = {name for name in loaded if name not in sys.stdlib_module_names and not name.startswith("__")}
    assert outside <= {"lightning_app"}


@pytest.mark.parametrize("config_class", CONFIGS, ids=lambda found: found.__name__)
def test_every_field_has_its_help_below_it(config_class: type) -> None:
    (body,) = ast.parse(inspect.getsource(config_class)).body
    assert isinstance(body, ast.ClassDef)
    for field, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign):
            assert isinstance(after, ast.Expr), ast.unparse(field)
            assert isinstance(after.value, ast.Constant), ast.unparse(field)
            assert str(after.value.value).endswith((".", ")")), ast.unparse(field)


@pytest.mark.parametrize("config_class", CONFIGS, ids=lambda found: found.__name__)
def test_configurations_are_frozen_and_keyword_only(config_class: type) -> None:
    parameters = config_class.__dataclass_params__  # type: ignore[attr-defined]
    assert parameters.frozen
    assert all(field.kw_only for field in dataclasses.fields(config_class))


def test_to_dict_is_plain_and_nested() -> None:
    written = TrainConfig(stages=(StageConfig(name="a", families=("even", "odd")),)).to_dict()
    assert written["stages"][0]["families"] == ["even", "odd"]
    assert written["lora"]["r"] == 16
    assert written["merges"] == list(config.DEFAULT_MERGES)


def test_the_default_stages_are_broad_then_six() -> None:
    assert [(stage.name, stage.families) for stage in TrainConfig().stages] == [
        ("broad", ("broad",)),
        ("six", ("six",)),
    ]


def test_the_pretraining_command_gives_the_configuration_back() -> None:
    assert PretrainConfig().command() == "python pretrain.py"
    chosen = PretrainConfig(language_steps=7, bf16=False, output="runs/a b", temperature=0.2)
    _, script, *argv = shlex.split(chosen.command())
    assert script == "pretrain.py"
    assert parse(PretrainConfig, argv) == replace(chosen, output=PretrainConfig().output), "the output is no part of it"
