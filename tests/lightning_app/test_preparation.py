"""What a run proves before it writes anything."""

import json
import shutil

import pytest
import torch
from peft.tuners.lora import LoraLayer, ParamWrapper

from data.suites import paper_suite
from lightning_app import preparation
from lightning_app.config import LoraConfig, TrainConfig
from lightning_app.preparation import prepare
from lightning_app.stages import read_run_data
from models.attention import reads_ahead
from models.embedder import encode, load_embedder
from models.export import save_embedder
from models.tiny_llm import build_tiny_llm
from tests.models.hub_folders import edit_json, tiny_rows, write_hub_folder


def prepared(**settings):
    """Without a look at the lengths of texts, which takes the time of all the rest."""
    config = TrainConfig(**{"merges": (), **settings})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "check_lengths", lambda *_, **__: None)
        return prepare(config, read_run_data(config))


@pytest.mark.parametrize(("top", "layers"), [(None, {"0", "1"}), (1, {"1"})])
def test_the_adapter_is_on_the_layers_asked_for_and_is_still_the_identity(tiny_folder, top, layers):
    run = prepared(backbone=str(tiny_folder), lora=LoraConfig(r=2, targets=("q_proj",)), adapt_top=top)
    trained = [name for name, parameter in run.embedder.named_parameters() if parameter.requires_grad]
    assert {name.split(".layers.")[1].split(".")[0] for name in trained} == layers
    assert all(".q_proj.lora_" in name for name in trained)
    assert run.adapts
    assert run.base == tiny_folder
    texts = paper_suite().texts
    assert torch.equal(run.encode(texts), encode(load_embedder(tiny_folder), texts))


def test_a_model_from_scratch_is_trained_whole():
    config = TrainConfig(backbone="tiny-encoder")
    run = prepare(config, read_run_data(config))
    assert not run.adapts
    assert run.base is None
    assert all(parameter.requires_grad for parameter in run.embedder.parameters())


def test_dora_rslora_precision_and_mask_are_what_was_asked_for(tiny_folder):
    assert not reads_ahead(load_embedder(tiny_folder))
    lora = LoraConfig(r=4, alpha=8, targets=("q_proj",), use_dora=True, use_rslora=True)
    run = prepared(backbone=str(tiny_folder), lora=lora, dtype="bfloat16", bidirectional=True)
    layer = run.embedder[0].model.base_model.model.layers[1].self_attn.q_proj
    assert layer.scaling == {"default": 8 / 4**0.5}
    assert "default" in layer.lora_magnitude_vector
    assert layer.base_layer.weight.dtype == torch.bfloat16
    assert {each.dtype for each in run.embedder.parameters() if each.requires_grad} == {torch.float32}
    assert reads_ahead(run.embedder)


def test_blocks_are_checkpointed_only_when_asked_for(tiny_folder):
    for asked in (False, True):
        run = prepared(backbone=str(tiny_folder), gradient_checkpointing=asked, lora=LoraConfig(r=2))
        assert all(each.gradient_checkpointing is asked for each in run.embedder[0].model.base_model.model.layers)


def test_a_base_in_few_bits_is_adapted(tmp_path):
    wide = build_tiny_llm(hidden_size=64, layers=1, heads=2, intermediate_size=64, seed=1)
    folder = save_embedder(wide, tmp_path / "wide")
    run = prepared(backbone=str(folder), lora=LoraConfig(r=2, quantization="nf4"))
    layer = run.embedder[0].model.base_model.model.layers[0].mlp.up_proj
    assert type(layer.base_layer).__name__ == "Linear4bit"
    assert layer.lora_A["default"].weight.dtype == torch.float32


@pytest.fixture(scope="module")
def nomic(tmp_path_factory):
    cache = tmp_path_factory.mktemp("hub")
    write_hub_folder(cache, "nomic-moe")
    return cache


SHORT = "\n".join(json.dumps({"text": f"{i}, {i + k}", "label": k}) for k in range(3) for i in range(12))


@pytest.mark.parametrize(
    ("targets", "kinds"),
    [
        ((), {"Wqkv", "out_proj", "fc1", "fc2", "w1", "w2"}),
        (("Wqkv", "w2"), {"Wqkv", "w2"}),
        (("mlp.experts.mlp.w1",), {"w1"}),
    ],
)
def test_experts_are_adapted_by_default_or_by_name(nomic, tmp_path, targets, kinds):
    data = tmp_path / "short.jsonl"
    data.write_text(SHORT)
    lora = LoraConfig(r=2, targets=targets)
    with tiny_rows():
        run = prepared(backbone="nomic-moe", cache=str(nomic), offline=True, data=str(data), lora=lora)
    adapted = [each for each in run.embedder[0].model.modules() if isinstance(each, LoraLayer)]
    names = {name for name, each in run.embedder.named_modules() if isinstance(each, LoraLayer)}
    found = {each.parameter_name for each in adapted if isinstance(each, ParamWrapper)}
    assert found | {name.rpartition(".")[2] for name in names if ".experts." not in name} == kinds


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"lora": LoraConfig(dense="train"), "merges": ("soup",)},
            r"--lora\.dense train: expected no merges, .* soup;",
        ),
        ({"lora": LoraConfig(dense="train")}, r"--lora\.dense train: expected a model with Dense modules"),
        (
            {"backbone": "tiny-encoder", "lora": LoraConfig(use_dora=True)},
            r"--backbone tiny-encoder: .*--lora\.use-dora",
        ),
        ({"lora": LoraConfig(quantization="nf4")}, r"expected at least 64 inputs .*, got 32"),
    ],
)
def test_what_cannot_be_is_refused(tiny_folder, settings, message):
    with pytest.raises(ValueError, match=message):
        prepared(**{"backbone": str(tiny_folder), **settings})


def test_a_model_that_needs_its_own_code_is_refused_before_the_first_step(tiny_folder, tmp_path):
    """What it saves could not be read again: its stages and merges are loaded without that code."""
    folder = shutil.copytree(tiny_folder, tmp_path / "own")
    edit_json(folder / "config.json", model_type="own", auto_map={"AutoModel": "modeling_own.OwnModel"})
    (folder / "modeling_own.py").write_text("raise AssertionError")
    with pytest.raises(ValueError, match=r"--trust-remote-code: .*class OwnModel of modeling_own\.py"):
        prepared(backbone=str(folder), trust_remote_code=True)
