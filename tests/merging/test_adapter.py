"""Folding LoRA adapters: against PEFT on a real (tiny) Llama, and every kind that is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merging import merge_checkpoints
from merging.adapter import base_of, is_adapter, open_adapter
from merging.sources import Checkpoint, open_model
from storage.tensor_file import read_tensors, write_tensors
from tests.merging.conftest import MakeModel


def folded(adapter: Path, base: Path | Checkpoint) -> dict[str, Tensor]:
    model = open_adapter(adapter, open_model(base) if isinstance(base, Path) else base)
    result = {}
    for name, source in model.tensors.items():
        rows = source.shape[0] if source.shape else 1
        result[name] = source.rows(0, rows).reshape(source.shape)
    return result


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    folder = tmp_path_factory.mktemp("llama") / "base"
    LlamaModel(LlamaConfig(vocab_size=13, **size)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 5, "layers.1.mlp.up_proj": 1}, "alpha_pattern": {"v_proj": 32}},
        {"use_rslora": True, "rank_pattern": {"layers.0.self_attn.q_proj": 2}},
    ],
)
def test_folding_equals_pefts_merge_and_unload(llama: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaModel

    torch.manual_seed(1)
    config = LoraConfig(r=3, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"], **settings)
    model = get_peft_model(LlamaModel.from_pretrained(llama), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path / "adapter")
    expected = model.merge_and_unload().state_dict()
    got = folded(tmp_path / "adapter", llama)
    assert got.keys() == expected.keys()
    before = read_tensors(llama / "model.safetensors")
    changed = [name for name in got if not torch.equal(got[name], before[name])]
    assert len(changed) == 6
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name].float(), tensor, rtol=1e-6, atol=1e-6)


def test_stages_saved_by_peft_merge_into_a_folder_that_transformers_loads(llama: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaModel

    expected: dict[str, Tensor] = {}
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = get_peft_model(LlamaModel.from_pretrained(llama), LoraConfig(r=2, target_modules=["q_proj"]))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(tmp_path / f"stage{seed}")
        for name, tensor in model.merge_and_unload().state_dict().items():
            expected[name] = expected.get(name, 0) + tensor / 2
    stages = [tmp_path / "stage1", tmp_path / "stage2"]
    report = merge_checkpoints(stages, tmp_path / "out", method="linear")
    assert report["space"] == "task_vector"
    assert report["base"]["path"] == str(llama)
    for name, tensor in LlamaModel.from_pretrained(tmp_path / "out").state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("on_disk", "in_keys"),
    [("", ""), ("", "model."), ("", "outer.model."), ("model.", ""), ("model.", "model."), ("bert.model.", "model.")],
)
def test_a_prefix_may_differ_between_memory_and_disk(
    make_model: MakeModel, make_adapter: MakeModel, tiny: dict[str, Tensor], on_disk: str, in_keys: str
) -> None:
    base = make_model("base", {on_disk + name: tensor for name, tensor in tiny.items()})
    modules = [in_keys + "layers.0.proj", in_keys + "layers.1.proj"]
    adapter = make_adapter("adapter", base, modules=modules)
    factors = read_tensors(adapter / "adapter_model.safetensors")
    got = folded(adapter, base)
    for module in modules:
        a, b = (factors[f"base_model.model.{module}.lora_{side}.weight"].double() for side in "AB")
        name = module.removeprefix(in_keys) + ".weight"
        torch.testing.assert_close(got[on_disk + name], tiny[name].double() + 2 * b @ a, rtol=1e-6, atol=1e-6)


def test_an_adapter_folds_into_the_transformer_of_a_sentence_transformers_folder(
    make_model: MakeModel, make_adapter: MakeModel, tiny: dict[str, Tensor]
) -> None:
    base = make_model("base", tiny, sub="0_Transformer", dense={"layers.0.proj.weight": torch.zeros(6, 6)})
    got = folded(make_adapter("adapter", base), base)
    assert not torch.equal(got["0_Transformer/layers.0.proj.weight"].float(), tiny["layers.0.proj.weight"])
    assert not got["2_Dense/layers.0.proj.weight"].any()


@pytest.mark.parametrize("module", ["layers.7.proj", "proj", "0.proj"])
def test_a_key_that_matches_nothing_is_named(
    make_model: MakeModel, make_adapter: MakeModel, tiny: dict[str, Tensor], module: str
) -> None:
    base = make_model("base", tiny)
    adapter = make_adapter("adapter", base, modules=["layers.0.proj", module])
    with pytest.raises(
        ValueError, match=rf"adapter_model\.safetensors: {module} matches no tensor of the base .*--base"
    ):
        folded(adapter, base)


def test_a_name_that_ends_like_several_tensors_is_not_guessed(
    make_model: MakeModel, make_adapter: MakeModel, tiny: dict[str, Tensor]
) -> None:
    base = make_model("base", tiny)
    with pytest.raises(ValueError, match="proj matches several tensors"):
        folded(make_adapter("adapter", base, modules=["proj"]), base)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "expected peft_type LORA, got 'IA3'"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias none"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["pooler"]}, "modules_to_save"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"target_parameters": ["w"]}, "target_parameters"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4' changes the base"),
        ({"r": 3}, "expected rank 2 .* got r = 3"),
        ({"lora_alpha": None}, "alpha = None"),
    ],
)
def test_a_kind_of_adapter_that_cannot_be_folded_is_refused_by_name(
    make_model: MakeModel, make_adapter: MakeModel, tiny: dict[str, Tensor], config: dict[str, Any], message: str
) -> None:
    base = make_model("base", tiny)
    with pytest.raises(ValueError, match=message) as error:
        folded(make_adapter("adapter", base, **config), base)
    assert "adapter_config.json" in str(error.value)
    assert "\n" not in str(error.value)


A, B = "base_model.model.layers.0.proj.lora_A.weight", "base_model.model.layers.0.proj.lora_B.weight"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({A: torch.ones(2, 6)}, "layers.0.proj: expected lora_A and lora_B"),
        ({A: torch.ones(2, 6), B: torch.ones(5, 2)}, r"expected factors for \[6, 6\], got A \[2, 6\] and B \[5, 2\]"),
        ({A: torch.ones(2, 6), B: torch.ones(6, 3)}, "expected factors for"),
        ({A: torch.ones(2, 6), B: torch.zeros(6, 2)}, "without effect"),
        (
            {"base_model.model.layers.0.proj.lora_magnitude_vector": torch.ones(6)},
            "lora_magnitude_vector; not supported",
        ),
        ({"base_model.model.layers.0.proj.bias": torch.ones(6)}, r"proj\.bias; not supported"),
        ({"layers.0.proj.lora_A.weight": torch.ones(2, 6)}, "expected keys base_model"),
        ({}, "got no tensor"),
    ],
)
def test_factors_that_do_not_fit_are_refused_by_name(
    make_model: MakeModel, make_adapter: MakeModel, tiny: dict[str, Tensor], tensors: dict[str, Tensor], message: str
) -> None:
    base = make_model("base", tiny)
    with pytest.raises(ValueError, match=message) as error:
        folded(make_adapter("adapter", base, tensors=tensors), base)
    assert "adapter_model.safetensors" in str(error.value)


def test_factors_that_are_not_finite_are_refused(
    make_model: MakeModel, make_adapter: MakeModel, tiny: dict[str, Tensor]
) -> None:
    from safetensors.torch import save_file

    base = make_model("base", tiny)
    adapter = make_adapter("adapter", base)
    save_file({A: torch.full((2, 6), math.nan), B: torch.ones(6, 2)}, adapter / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"lora_A\.weight: expected finite values, got 12"):
        folded(adapter, base)


def test_the_base_is_named_by_the_adapter_or_asked_for(
    make_model: MakeModel, make_adapter: MakeModel, tiny: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_model("base", tiny)
    monkeypatch.chdir(base.parent)
    assert base_of(make_adapter("relative", "base")) == "base"
    for name, named in (("hub", "organisation/model"), ("none", None)):
        with pytest.raises(ValueError, match=r"local folder, got .*; add --base"):
            base_of(make_adapter(name, named))


def test_folders_that_are_two_things_at_once_are_refused(
    make_model: MakeModel, make_adapter: MakeModel, tiny: dict[str, Tensor]
) -> None:
    base = make_model("base", tiny)
    adapter = make_adapter("adapter", base)
    assert is_adapter(adapter)
    assert not is_adapter(base)
    (adapter / "2_Dense").mkdir()
    write_tensors(adapter / "2_Dense" / "model.safetensors", {"w": torch.ones(1)})
    with pytest.raises(ValueError, match=r"2_Dense/model\.safetensors: .*would be lost"):
        folded(adapter, base)
    (adapter / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="an adapter or a whole model, got both"):
        is_adapter(adapter)


def test_a_pickled_adapter_is_refused(make_model: MakeModel, tiny: dict[str, Tensor], tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4})
    )
    (tmp_path / "adapter" / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"adapter_model\.bin: .*pickle"):
        folded(tmp_path / "adapter", make_model("base", tiny))
