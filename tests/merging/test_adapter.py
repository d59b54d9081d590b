"""Folding LoRA adapters: against PEFT on a real (tiny) Llama, and every kind that is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merging.adapter import is_adapter, open_adapter
from merging.adapter_config import read_adapter_config
from merging.sources import Checkpoint, open_model
from storage.tensor_file import read_tensors, write_tensors
from tests.merging.conftest import MakeModel

A, B = "base_model.model.layers.0.proj.lora_A.weight", "base_model.model.layers.0.proj.lora_B.weight"
M = "base_model.model.layers.0.proj.lora_magnitude_vector"


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


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose linear layers have biases, none of them zero."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = BertModel(BertConfig(vocab_size=13, **size))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    folder = tmp_path_factory.mktemp("bert") / "base"
    model.save_pretrained(folder)
    return folder


def trained_by_peft(base: Path, folder: Path, *, seed: int = 1, **settings: Any) -> dict[str, Tensor]:
    """Save an adapter in which everything trainable was moved, and return the weights after merge_and_unload."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    torch.manual_seed(seed)
    model = get_peft_model(AutoModel.from_pretrained(base), LoraConfig(**{"r": 3, "lora_alpha": 8} | settings))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model.merge_and_unload().state_dict()


LLAMA = {"target_modules": ["q_proj", "v_proj", "up_proj"]}
BERT = {"target_modules": ["query", "output.dense"]}


@pytest.mark.parametrize(
    ("base", "settings", "changed"),
    [
        ("llama", {}, 6),
        ("llama", {"use_rslora": True}, 6),
        ("llama", {"rank_pattern": {"q_proj": 5, "layers.1.mlp.up_proj": 1}, "alpha_pattern": {"v_proj": 32}}, 6),
        ("llama", {"use_rslora": True, "rank_pattern": {"layers.0.self_attn.q_proj": 2}}, 6),
        ("llama", {"use_dora": True}, 6),
        ("llama", {"use_dora": True, "use_rslora": True, "rank_pattern": {"v_proj": 1}}, 6),
        ("bert", {}, 6),
        ("bert", {"lora_bias": True}, 12),
        ("bert", {"lora_bias": True, "use_rslora": True}, 12),
        ("bert", {"bias": "all"}, 24),
        ("bert", {"bias": "lora_only"}, 12),
        ("bert", {"bias": "all", "use_dora": True}, 24),
        ("bert", {"modules_to_save": ["pooler"]}, 8),
        ("bert", {"modules_to_save": ["embeddings.LayerNorm", "key"], "use_dora": True}, 12),
        ("bert", {"modules_to_save": ["pooler"], "bias": "all"}, 25),
    ],
)
def test_folding_equals_pefts_merge_and_unload(
    request: pytest.FixtureRequest, tmp_path: Path, base: str, settings: dict[str, Any], changed: int
) -> None:
    folder: Path = request.getfixturevalue(base)
    targets = LLAMA if base == "llama" else BERT
    expected = trained_by_peft(folder, tmp_path / "adapter", **targets, **settings)
    got = folded(tmp_path / "adapter", folder)
    assert got.keys() == expected.keys()
    before = read_tensors(folder / "model.safetensors")
    assert len([name for name in got if not torch.equal(got[name].float(), before[name])]) == changed
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name].float(), tensor, rtol=1e-6, atol=1e-6)


def test_a_base_that_stores_its_weights_transposed(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    GPT2Model(GPT2Config(vocab_size=13, n_embd=16, n_layer=1, n_head=2, n_positions=8)).save_pretrained(tmp_path / "b")
    settings = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
    expected = trained_by_peft(tmp_path / "b", tmp_path / "adapter", **settings)
    for name, tensor in folded(tmp_path / "adapter", tmp_path / "b").items():
        torch.testing.assert_close(tensor.float(), expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"bias": "all"}, {"lora_bias": True}])
def test_rows_can_be_asked_for_in_any_pieces(bert: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    trained_by_peft(bert, tmp_path / "adapter", **BERT, **settings)
    model = open_adapter(tmp_path / "adapter", open_model(bert))
    for source in model.tensors.values():
        rows = source.shape[0]
        pieces = [source.rows(at, min(at + 5, rows)) for at in range(0, rows, 5)]
        torch.testing.assert_close(torch.cat(pieces), source.rows(0, rows), rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(source.held().rows(0, rows), source.rows(0, rows), rtol=0, atol=0)


def test_the_product_is_formed_in_float64(make_model: MakeModel, make_adapter: MakeModel) -> None:
    # 1 + 2**-30 in the product of factors: float32 would round it away.
    base = make_model("base", {"layers.0.proj.weight": torch.zeros(1, 1)})
    tensors = {A: torch.tensor([[1.0], [2.0**-15]]), B: torch.tensor([[1.0, 2.0**-15]])}
    got = folded(make_adapter("adapter", base, tensors=tensors, lora_alpha=2), base)
    assert float(got["layers.0.proj.weight"]) == 1 + 2.0**-30


def test_a_row_of_zeros_has_no_direction_and_stays_zero(make_model: MakeModel, make_adapter: MakeModel) -> None:
    base = make_model("base", {"layers.0.proj.weight": torch.tensor([[0.0, 0.0], [3.0, 4.0]])})
    tensors = {A: torch.tensor([[0.0, 1.0]]), B: torch.tensor([[0.0], [1e-30]]), M: torch.tensor([1.0, 10.0])}
    got = folded(make_adapter("adapter", base, tensors=tensors, r=1, use_dora=True), base)
    torch.testing.assert_close(got["layers.0.proj.weight"], torch.tensor([[0.0, 0.0], [6.0, 8.0]]).double())


def test_updates_of_modules_that_the_disk_keeps_fused(make_model: MakeModel, make_adapter: MakeModel) -> None:
    weight = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    base = make_model("base", {"attn.qkv.weight": weight, "other": torch.ones(2)})
    views = {"attn.q.weight": ("attn.qkv.weight", 0, 3), "attn.v.weight": ("attn.qkv.weight", 6, 9)}
    adapter = make_adapter("adapter", base, modules=["model.attn.q", "model.attn.v"], shape=(3, 4))
    model = open_adapter(adapter, open_model(base), views)
    factors = read_tensors(adapter / "adapter_model.safetensors")
    expected = weight.double()
    for at, part in ((0, "q"), (6, "v")):
        a, b = (factors[f"base_model.model.model.attn.{part}.lora_{side}.weight"].double() for side in "AB")
        expected[at : at + 3] += 2 * b @ a
    source = model.tensors["attn.qkv.weight"]
    torch.testing.assert_close(source.rows(0, 9), expected)
    torch.testing.assert_close(source.rows(2, 7), expected[2:7])


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
    from merging import merge_checkpoints

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
        ValueError, match=rf"adapter_model\.safetensors: .* got {module}, which matches no tensor .*--base"
    ):
        folded(adapter, base)


def test_a_name_that_ends_like_several_tensors_is_not_guessed(
    make_model: MakeModel, make_adapter: MakeModel, tiny: dict[str, Tensor]
) -> None:
    base = make_model("base", tiny)
    with pytest.raises(ValueError, match="proj, which matches several tensors"):
        folded(make_adapter("adapter", base, modules=["proj"]), base)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "expected peft_type LORA, got 'IA3'"),
        ({"use_dora": True, "fan_in_fan_out": True}, "DoRA without fan_in_fan_out"),
        ({"bias": "some"}, "expected bias to be one of none, all, lora_only, got 'some'"),
        ({"modules_to_save": "pooler"}, "list of names in modules_to_save"),
        ({"rank_pattern": [1]}, "object rank_pattern"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"use_qalora": True}, "use_qalora"),
        ({"target_parameters": ["w"]}, "target_parameters"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', which changes the base"),
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


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({A: torch.ones(2, 6)}, "layers.0.proj: expected lora_A and lora_B"),
        ({A: torch.ones(2, 6), B: torch.ones(5, 2)}, r"expected factors for \[6, 6\], got A \[2, 6\] and B \[5, 2\]"),
        ({A: torch.ones(2, 6), B: torch.ones(6, 3)}, r"expected factors A \[r, in\] and B \[out, r\]"),
        ({A: torch.ones(2, 6, 1), B: torch.ones(6, 2)}, "only linear layers"),
        ({A: torch.ones(2, 6), B: torch.ones(6, 2), M: torch.ones(6)}, "what use_dora = False says"),
        ({A: torch.ones(2, 6, dtype=torch.int64), B: torch.ones(6, 2)}, "floating-point dtype, got torch.int64"),
        ({A.replace("lora_A", "lora_embedding_A"): torch.ones(2, 6)}, "lora_embedding_A.weight; not supported"),
        ({A: torch.ones(2, 6), B: torch.zeros(6, 2)}, "without effect"),
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


@pytest.mark.parametrize(
    ("config", "extra", "message"),
    [
        ({"use_dora": True}, {}, "what use_dora = True says, got one without"),
        ({"use_dora": True}, {M: torch.ones(5)}, r"expected 6 numbers for use_dora, got \[5\]"),
        ({"lora_bias": True}, {}, "what lora_bias = True says"),
        ({"lora_bias": True}, {B.replace("weight", "bias"): torch.ones(6)}, r"proj\.bias, which matches no tensor"),
        ({"bias": "all"}, {"base_model.model.norm.bias": torch.ones(6)}, r"norm\.bias, which matches no tensor"),
        (
            {"bias": "all"},
            {"base_model.model.emb.bias": torch.ones(5)},
            r"emb\.bias: expected shape \[4\] .* got \[5\]",
        ),
        ({"modules_to_save": ["emb"]}, {"base_model.model.emb.weight": torch.ones(3, 2)}, r"expected shape \[3, 4\]"),
        ({"modules_to_save": ["emb"]}, {"base_model.model.norm.weight": torch.ones(6)}, r"norm\.weight; not supported"),
        (
            {"bias": "all"},
            {f"base_model.model.emb.{at}bias": torch.full((4,), i) for i, at in enumerate(("", "base_layer."))},
            "expected one value of emb.bias, got two that differ",
        ),
    ],
)
def test_tensors_beside_the_factors_that_do_not_fit_are_refused_by_name(
    make_model: MakeModel, make_adapter: MakeModel, config: dict[str, Any], extra: dict[str, Tensor], message: str
) -> None:
    shapes = {"layers.0.proj.weight": (6, 6), "emb.weight": (3, 4), "emb.bias": (4,), "norm.weight": (6,)}
    base = make_model("base", {name: torch.ones(shape) for name, shape in shapes.items()})
    tensors = {A: torch.ones(2, 6), B: torch.ones(6, 2), **{name: value.float() for name, value in extra.items()}}
    with pytest.raises(ValueError, match=message) as error:
        folded(make_adapter("adapter", base, tensors=tensors, **config), base)
    assert "adapter_model.safetensors" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "kept"),
    [("a.pooler.dense.weight", True), ("a.mypooler.weight", True), ("pooler_2.weight", False), ("a.bias", False)],
)
def test_modules_saved_whole_are_those_whose_name_ends_as_peft_says(
    make_adapter: MakeModel, name: str, kept: bool
) -> None:
    config = read_adapter_config(make_adapter("adapter", None, modules_to_save=["pooler"]))
    assert config.keeps_whole(name) is kept
