"""Floors and averages that are out of range or do nothing are refused before anything is read."""

import json

import pytest

from lightning_app.config import StageConfig, TrainConfig
from lightning_app.stages import read_run_data


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"stages": (StageConfig(name="a", families=("six",), retention_floor=1.5),)},
            r"--stages\.0\.retention-floor: expected a number in \[0, 1\], got 1\.5",
        ),
        (
            {"stages": (StageConfig(name="a", families=("six",), retention_floor=float("nan")),)},
            r"--stages\.0\.retention-floor: expected a number in \[0, 1\], got nan",
        ),
        ({"average": "ema", "ema_decay": 1.0}, r"--ema-decay: expected a number in \[0, 1\), got 1\.0"),
        ({"average": "ema", "ema_decay": -0.1}, r"--ema-decay: expected a number in \[0, 1\), got -0\.1"),
        ({"average": "swa", "ema_decay": 0.5}, "--ema-decay: expected --average ema beside it, got swa"),
        (
            {"stages": (StageConfig(name="a", families=("six",)),), "merges": ("search",)},
            "--merges search: expected two models at least to search between, got one stage and no replicas",
        ),
        ({"data": "own.jsonl", "merges": ("search",)}, "--merges search: expected two models at least"),
    ],
)
def test_what_no_recipe_can_do_is_refused(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        read_run_data(TrainConfig(**settings))
    assert "\n" not in str(error.value)


@pytest.fixture
def few(tmp_path):
    """Text of which nothing can be held back."""
    file = tmp_path / "few.jsonl"
    rows = [{"text": f"{word} {i}", "label": word} for word in ("red", "green") for i in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_a_floor_needs_a_selection_suite(few):
    stage = StageConfig(name="own", retention_floor=0.8)
    with pytest.raises(ValueError, match=r"--stages\.0\.retention-floor: expected texts enough for a selection suite"):
        read_run_data(TrainConfig(data=few, stages=(stage,)))
    assert read_run_data(TrainConfig(data=few)).selection is None


def test_a_search_that_is_asked_for_needs_one_too(few):
    with pytest.raises(ValueError, match="--merges search: expected texts enough for a selection suite"):
        read_run_data(TrainConfig(data=few, replicas=2, merges=("search",)))
    assert len(read_run_data(TrainConfig(data=few, replicas=2)).stages) == 2
