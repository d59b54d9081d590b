"""Merging adapters: every mistake that is refused, and what is then left on the disk."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merging.lora_space import merge_adapters
from storage.tensor_file import read_tensors
from tests.merging.conftest import MakeModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def test_one_tensor_under_two_names_is_refused(
    make_model: MakeModel, make_adapter: MakeModel, tiny: dict[str, Tensor], tmp_path: Path
) -> None:
    base = make_model("base", tiny)
    names = {"a": "layers.0.proj", "b": "model.layers.1.proj", "c": "layers.1.proj"}
    inputs = [make_adapter(key, base, modules=[name], seed=ord(key)) for key, name in names.items()]
    with pytest.raises(ValueError, match=r"c/adapter_model.*: expected one name for tensor layers\.1\.proj\.weight of"):
        merge_adapters(inputs, tmp_path / "out", method="linear", base=base)


def test_adapters_of_two_bases_are_refused(
    make_model: MakeModel, make_adapter: MakeModel, tiny: dict[str, Tensor], tmp_path: Path
) -> None:
    base = make_model("base", tiny)
    inputs = [make_adapter("a", base), make_adapter("b", "organisation/same-model", seed=2)]
    with pytest.raises(ValueError, match=r"b/adapter_config\.json: .*'organisation/same-model'.* add --base"):
        merge_adapters(inputs, tmp_path / "out", method="linear")
    merge_adapters(inputs, tmp_path / "out", method="linear", base=base)
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert config["base_model_name_or_path"] == str(base)
    for path, value in zip(inputs, "ab", strict=True):
        (path / "manifest.json").write_text(json.dumps({"base": {"fingerprint": value * 64}}))
    with pytest.raises(ValueError, match=r"of the base with fingerprint aaaaaaaaaaaa as .*/a, got bbbbbbbbbbbb"):
        merge_adapters(inputs, tmp_path / "out2", method="linear")
    with pytest.raises(ValueError, match=r"expected the base with fingerprint aaaaaaaaaaaa, got .*/base"):
        merge_adapters(inputs, tmp_path / "out2", method="linear", base=base)
    assert not (tmp_path / "out2").exists()


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"method": "slurp"}, "--method: expected one of .*'slurp'; did you mean slerp"),
        ({"method": "slerp", "inputs": 3}, "--inputs: slerp expected .* 2 models, got 3"),
        ({"method": "karcher", "inputs": 1}, "--inputs: karcher expected at least 2 models, got 1"),
        ({"method": "linear", "weights": [1, -1]}, "--weights: .*not negative"),
        ({"method": "linear", "weights": [0, 0]}, "--weights: .*sum above zero"),
        ({"method": "linear", "weights": [1]}, "--weights: expected 2 numbers, one per input, got 1"),
        ({"method": "slerp", "t": -0.1}, r"--t: expected a number in \[0, 1\], got -0.1"),
        ({"method": "slerp", "norm": "base"}, "--norm base"),
        ({"method": "slerp", "density": 0.5}, "--density: slerp expected no parameters but norm, t"),
        ({"method": "ties", "density": 1.5}, "--density"),
        ({"method": "linear", "rank": 0}, "--rank: expected a rank of at least 1, got 0"),
        ({"method": "linear", "base": "a"}, "--base .*/a: expected a whole model, got an adapter"),
        ({"method": "linear", "base": "other"}, "tensors of the base .*other, got .*which matches no tensor"),
    ],
)
def test_a_mistake_in_what_was_asked_writes_nothing(
    make_model: MakeModel,
    make_adapter: MakeModel,
    tiny: dict[str, Tensor],
    tmp_path: Path,
    told: dict[str, Any],
    message: str,
) -> None:
    base = make_model("base", tiny)
    make_model("other", {"embeddings.weight": torch.ones(2, 2)})
    inputs = [make_adapter(name, base, seed=seed) for seed, name in enumerate("abc"[: told.get("inputs", 2)])]
    asked = {key: value for key, value in told.items() if key != "inputs"}
    if "base" in asked:
        asked["base"] = tmp_path / asked["base"]
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=message) as error:
        merge_adapters(inputs, tmp_path / "out", **asked)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


def test_opposite_adapters_follow_the_policy(
    make_model: MakeModel, make_adapter: MakeModel, tiny: dict[str, Tensor], tmp_path: Path
) -> None:
    base = make_model("base", tiny)
    there = make_adapter("there", base, modules=["layers.0.proj"])
    back = {key: -value if ".lora_B." in key else value.clone() for key, value in read_tensors(there / WEIGHTS).items()}
    inputs = [there, make_adapter("back", base, tensors=back)]
    with pytest.raises(ValueError, match=r"tensor layers\.0\.proj\.weight: .*antipodal"):
        merge_adapters(inputs, tmp_path / "out", method="slerp")
    merge_adapters(inputs, tmp_path / "linear", method="slerp", t=0.25, antipodal="linear")
    factors = read_tensors(tmp_path / "linear" / WEIGHTS)
    name = "base_model.model.layers.0.proj.lora_B.weight"
    torch.testing.assert_close(factors[name], 2 * 0.5 * read_tensors(there / WEIGHTS)[name])
    report = merge_adapters(inputs, tmp_path / "base_wins", method="slerp", antipodal="base")
    assert not read_tensors(tmp_path / "base_wins" / WEIGHTS)[name].any()
    assert report["summary"]["notes"]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"shape": (5, 6)}, r"b/adapter_model.*layers\.0\.proj: expected shape \[6, 6\] as in .*a, got \[5, 6\]"),
        ({"fan_in_fan_out": True}, "expected fan_in_fan_out = False as in .*/a, got True"),
        ({"modules": ["model.layers.0.proj"]}, r"expected module layers\.0\.proj as in .*/a, got model\.layers"),
        ({"use_dora": True}, "what use_dora = True says"),
        ({"peft_type": "IA3"}, "expected peft_type LORA"),
    ],
)
def test_adapters_that_do_not_belong_together_are_refused(
    make_adapter: MakeModel, tmp_path: Path, second: dict[str, Any], message: str
) -> None:
    first = make_adapter("a", "hub/model", modules=["layers.0.proj"])
    other = make_adapter("b", "hub/model", **{"modules": ["layers.0.proj"], "seed": 2} | second)
    with pytest.raises(ValueError, match=message):
        merge_adapters([first, other], tmp_path / "out", method="linear")
    assert not (tmp_path / "out").exists()


def test_a_base_is_asked_for_where_the_mathematics_needs_it(make_adapter: MakeModel, tmp_path: Path) -> None:
    plain = [make_adapter(name, "hub/model", seed=seed) for seed, name in enumerate("ab")]
    merge_adapters(plain, tmp_path / "out", method="slerp")
    saved = make_adapter("c", "hub/model", modules_to_save=["emb"], tensors={"base_model.model.emb.w": torch.ones(2)})
    with pytest.raises(ValueError, match=r"local folder, got 'hub/model'; add --base"):
        merge_adapters([*plain, saved], tmp_path / "out2", method="linear")


def test_values_that_are_not_finite_are_named(
    make_model: MakeModel, make_adapter: MakeModel, tiny: dict[str, Tensor], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    base = make_model("base", tiny)
    inputs = [make_adapter("a", base), make_adapter("b", base, seed=2, modules_to_save=["norm"])]
    factors = read_tensors(inputs[1] / WEIGHTS)
    save_file(factors | {"base_model.model.norm.weight": torch.full((6,), torch.inf)}, inputs[1] / WEIGHTS)
    with pytest.raises(ValueError, match=r"b/adapter_model.safetensors: tensor norm\.weight: .* got 6 that are NaN"):
        merge_adapters(inputs, tmp_path / "out", method="linear")


def test_a_result_beyond_float32_is_refused(make_adapter: MakeModel, tmp_path: Path) -> None:
    inputs = [make_adapter(name, "hub/model", seed=seed, lora_alpha=1e38) for seed, name in enumerate("ab")]
    with pytest.raises(ValueError, match=r"tensor layers\.0\.proj\.weight: expected values that fit into float32"):
        merge_adapters(inputs, tmp_path / "out", method="task_arithmetic", scale=1e4)
    assert not (tmp_path / "out").exists()


def test_the_output_is_a_place_of_its_own(make_adapter: MakeModel, tmp_path: Path) -> None:
    inputs = [make_adapter(name, "hub/model", seed=seed) for seed, name in enumerate("ab")]
    with pytest.raises(ValueError, match="apart from the inputs"):
        merge_adapters(inputs, inputs[0] / "out", method="linear")
    with pytest.raises(ValueError, match="--overwrite"):
        merge_adapters(inputs, inputs[1], method="linear")
    merge_adapters(inputs, tmp_path / "out", method="linear")
    merge_adapters(inputs, tmp_path / "out", method="slerp", overwrite=True)
    assert json.loads((tmp_path / "out" / "merge.json").read_text())["method"] == "slerp"


def test_whole_models_are_for_another_command(
    make_model: MakeModel, make_adapter: MakeModel, tiny: dict[str, Tensor], tmp_path: Path
) -> None:
    base = make_model("base", tiny)
    with pytest.raises(ValueError, match=re.escape(f"--inputs {base}: expected the folder of a PEFT adapter")):
        merge_adapters([make_adapter("a", base), base], tmp_path / "out", method="linear")
