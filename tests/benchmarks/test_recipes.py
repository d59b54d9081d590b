"""Recipes and checkpoints of the comparison with mergekit; mergekit itself runs under ``make bench`` only."""

from pathlib import Path

import pytest
import torch
import yaml

from benchmarks import mergekit
from benchmarks.checkpoints import RELATIVE_CHANGE, Size, write_checkpoint, write_tiny_llama
from benchmarks.mergekit_agreement import CASES, recipe
from merging.mergekit_parts import role_of
from merging.mergekit_recipe import parse_mergekit_recipe
from merging.methods import METHODS
from storage.tensor_file import read_tensors

MODELS = [Path(f"model-{number}") for number in range(5)]


def test_every_method_that_mergekit_shares_has_a_case() -> None:
    assert CASES.keys() == {name for name, row in METHODS.items() if role_of(row)}


@pytest.mark.parametrize("method", CASES)
def test_nothing_that_a_case_says_is_without_effect(method: str) -> None:
    document = yaml.safe_load(recipe(method, MODELS))
    read = parse_mergekit_recipe(document, "file", compat="mergekit")
    assert read.method == method
    assert read.notes == ()
    assert [source["model"] for source in document["models"]] == [
        f"model-{k + 1}" for k in range(len(CASES[method].models))
    ]
    assert (read.base is not None) == CASES[method].base


@pytest.mark.parametrize("method", ["slerp", "linear", "karcher"])
def test_recipes_of_the_timed_commands(method: str) -> None:
    read = parse_mergekit_recipe(yaml.safe_load(mergekit.recipe(method, MODELS[:2])), "file", compat="mergekit")
    assert read.method == method
    assert [str(ref) for ref in read.inputs] == ["model-0", "model-1"]
    assert read.arguments["dtype"] == "bfloat16"


def test_checkpoints_have_the_size_that_is_told_and_differ_by_independent_noise(tmp_path: Path) -> None:
    size = Size(layers=1, vocabulary=64)
    tensors = [read_tensors(write_checkpoint(tmp_path / str(k), k, size) / "model.safetensors") for k in range(2)]
    assert sum(tensor.nbytes for tensor in tensors[0].values()) == size.bytes
    one, other = (each["model.layers.0.mlp.up_proj.weight"].double().flatten() for each in tensors)
    assert float(one.std()) == pytest.approx(0.02 * (1 + RELATIVE_CHANGE**2) ** 0.5, rel=1e-3)
    cosine = float(one @ other / one.norm() / other.norm())
    assert cosine == pytest.approx(1 / (1 + RELATIVE_CHANGE**2), abs=1e-5)
    assert float(one.norm() / other.norm()) == pytest.approx(1, abs=1e-3)


def test_tiny_models_lie_around_their_base(tmp_path: Path) -> None:
    base, one, other = (read_tensors(write_tiny_llama(tmp_path / str(k), k) / "model.safetensors") for k in range(3))
    assert {tensor.dtype for tensor in base.values()} == {torch.float32}
    name = "model.embed_tokens.weight"
    steps = [(each[name] - base[name]).flatten() for each in (one, other)]
    assert float(steps[0].std()) == pytest.approx(0.1, rel=0.1)
    assert abs(float(torch.corrcoef(torch.stack(steps))[0, 1])) < 0.1
