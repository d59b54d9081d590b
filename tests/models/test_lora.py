from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense
from torch import nn

from models.backbones import BACKBONES
from models.embedder import encode, load_embedder
from models.lora import add_lora, block_stack, target_modules, target_parameters
from models.nomic_moe import load_nomic_moe
from models.tiny_llm import build_tiny_llm
from tests.models.nomic_oracle import write_folder

EXPERTS = BACKBONES["nomic-moe"].expert_parameters
LLAMA = {"self_attn": ["q_proj", "k_proj", "v_proj", "o_proj"], "mlp": ["gate_proj", "up_proj", "down_proj"]}


def adapted_names(embedder: SentenceTransformer) -> set[str]:
    return {name.split(".lora_A.")[0] for name, _ in embedder.named_parameters() if ".lora_A." in name}


def expected_llama(layers: range) -> set[str]:
    return {
        f"0.model.base_model.model.layers.{layer}.{part}.{name}"
        for layer in layers
        for part, names in LLAMA.items()
        for name in names
    }


@pytest.mark.parametrize("targets", [None, BACKBONES["e5-mistral"].lora_targets])
def test_every_linear_layer_of_every_block_is_adapted(targets: tuple[str, ...] | None, mistral_folder: Path) -> None:
    embedder = load_embedder(mistral_folder)
    add_lora(embedder, r=2, targets=targets)
    assert adapted_names(embedder) == expected_llama(range(2))


@pytest.mark.parametrize("targets", [None, BACKBONES["all-minilm"].lora_targets, ("dense",)])
def test_the_pooler_of_bert_is_never_adapted(targets: tuple[str, ...] | None, bert_folder: Path) -> None:
    embedder = load_embedder(bert_folder)
    pooler = embedder[0].model.pooler.dense
    add_lora(embedder, r=2, targets=targets)
    assert embedder[0].model.base_model.model.pooler.dense is pooler
    names = adapted_names(embedder)
    assert len(names) == 2 * (3 if targets == ("dense",) else 6)
    assert all(".encoder.layer." in name for name in names)


def test_only_the_top_layers_are_adapted(tiny_folder: Path) -> None:
    embedder = load_embedder(tiny_folder)
    add_lora(embedder, r=2, adapt_top=1)
    assert adapted_names(embedder) == expected_llama(range(1, 2))


def test_only_the_factors_can_be_trained(tiny_folder: Path) -> None:
    plain = load_embedder(tiny_folder)
    embedder = SentenceTransformer(modules=[plain[0], plain[1], Dense(16, 8), plain[2]], device="cpu")
    add_lora(embedder, r=2)
    trainable = {name for name, each in embedder.named_parameters() if each.requires_grad}
    assert trainable == {name for name, _ in embedder.named_parameters() if ".lora_" in name}
    assert len(trainable) == 2 * 14


def test_the_update_is_alpha_over_r_times_b_a(tiny_folder: Path, texts: list[str]) -> None:
    """Oracle: the same product added to the dense weights by hand."""
    embedder = load_embedder(tiny_folder, dtype=torch.float64)
    add_lora(embedder, r=2, alpha=6, targets=["up_proj"], adapt_top=1)
    layer = embedder[0].model.base_model.model.layers[1].mlp.up_proj
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_(generator=torch.Generator().manual_seed(0))
    by_hand = load_embedder(tiny_folder, dtype=torch.float64)
    with torch.no_grad():
        update = 3.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        by_hand[0].model.layers[1].mlp.up_proj.weight += update
    ours, expected = encode(embedder, texts), encode(by_hand, texts)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    assert (ours - encode(load_embedder(tiny_folder), texts)).abs().max() > 1e-2


def test_rslora_divides_by_the_root_of_the_rank(tiny_folder: Path, texts: list[str]) -> None:
    embedder = load_embedder(tiny_folder, dtype=torch.float64)
    add_lora(embedder, r=4, alpha=6, targets=["up_proj"], adapt_top=1, use_rslora=True)
    layer = embedder[0].model.base_model.model.layers[1].mlp.up_proj
    by_hand = load_embedder(tiny_folder, dtype=torch.float64)
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_(generator=torch.Generator().manual_seed(0))
        update = 6 / 4**0.5 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        by_hand[0].model.layers[1].mlp.up_proj.weight += update
    torch.testing.assert_close(encode(embedder, texts), encode(by_hand, texts), rtol=0, atol=1e-6)


def test_dora_gives_each_row_of_the_updated_weight_its_length(tiny_folder: Path, texts: list[str]) -> None:
    """Oracle: eq. 5 of arXiv:2402.09353 on the dense weights, in float64."""
    embedder = load_embedder(tiny_folder, dtype=torch.float64)
    add_lora(embedder, r=2, alpha=6, targets=["up_proj"], adapt_top=1, use_dora=True)
    layer = embedder[0].model.base_model.model.layers[1].mlp.up_proj
    by_hand = load_embedder(tiny_folder, dtype=torch.float64)
    weight = by_hand[0].model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        torch.testing.assert_close(layer.lora_magnitude_vector["default"].weight, weight.norm(dim=1))
        generator = torch.Generator().manual_seed(0)
        layer.lora_B["default"].weight.normal_(generator=generator)
        lengths = torch.rand(24, generator=generator, dtype=torch.float64) + 0.5
        layer.lora_magnitude_vector["default"].weight.copy_(lengths)
        moved = weight + 3.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        weight.copy_(lengths[:, None] * moved / moved.norm(dim=1, keepdim=True))
    torch.testing.assert_close(encode(embedder, texts), encode(by_hand, texts), rtol=0, atol=1e-6)


def experts_embedder(folder: Path) -> SentenceTransformer:
    embedder = build_tiny_llm(hidden_size=16, layers=1, heads=2, intermediate_size=24, max_tokens=64)
    embedder[0].model = load_nomic_moe(write_folder(folder))
    return embedder.eval()


def test_experts_are_adapted_and_their_router_is_not(tmp_path: Path, texts: list[str]) -> None:
    """Oracle: the product added to the stacked weights by hand."""
    embedder, by_hand = experts_embedder(tmp_path / "first"), experts_embedder(tmp_path / "second")
    add_lora(embedder, r=2, alpha=6, expert_parameters=EXPERTS)
    names = adapted_names(embedder)
    assert len(names) == 4 * 2 + 2 * 2 + 2 * 2
    assert not any("router" in name for name in names)
    inner = embedder[0].model.base_model.model.encoder.layers[1].mlp.experts.mlp
    while hasattr(inner, "lora_B"):
        with torch.no_grad():
            inner.lora_B["default"].weight.normal_(generator=torch.Generator().manual_seed(1))
            update = 3.0 * inner.lora_B["default"].weight @ inner.lora_A["default"].weight
            getattr(by_hand[0].model.encoder.layers[1].mlp.experts.mlp, inner.parameter_name).add_(update)
        inner = inner.base_layer
    expected = encode(by_hand, texts)
    torch.testing.assert_close(encode(embedder, texts), expected, rtol=0, atol=2e-6)
    assert (expected - encode(experts_embedder(tmp_path / "third"), texts)).abs().max() > 1e-3


def test_the_top_layers_have_the_experts_that_are_in_them(tmp_path: Path) -> None:
    model = load_nomic_moe(write_folder(tmp_path / "nomic"))
    both = [f"encoder.layers.3.{name}" for name in EXPERTS]
    assert target_parameters(model, EXPERTS, adapt_top=2) == both
    assert target_parameters(model, EXPERTS) == [f"encoder.layers.1.{name}" for name in EXPERTS] + both
    assert target_modules(model, targets=BACKBONES["nomic-moe"].lora_targets, adapt_top=1) == [
        f"encoder.layers.3.attn.{name}" for name in ("Wqkv", "out_proj")
    ]
    with pytest.raises(ValueError, match=r"linear layers of the last 1 blocks \(Wqkv, layer, out_proj\), got fc1;"):
        target_modules(model, targets=["fc1"], adapt_top=1)
    with pytest.raises(ValueError, match=r"weights in the blocks of NomicMoeModel, got 'mlp.experts.w1'"):
        target_parameters(model, ["mlp.experts.w1"])


def test_experts_alone_are_adapted_where_no_linear_layer_is_named(tmp_path: Path) -> None:
    embedder = experts_embedder(tmp_path / "nomic")
    add_lora(embedder, r=2, targets=(), expert_parameters=EXPERTS)
    assert len(adapted_names(embedder)) == 4
    assert all(".experts." in name for name in adapted_names(embedder))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropout": 0.1}, r"--lora\.dropout 0\.1: .*stacked experts"),
        ({"use_dora": True}, r"--lora\.use-dora: .*stacked"),
    ],
)
def test_what_experts_cannot_have_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    embedder = experts_embedder(tmp_path / "nomic")
    with pytest.raises(ValueError, match=message):
        add_lora(embedder, r=2, expert_parameters=EXPERTS, **settings)
    assert not adapted_names(embedder)


def test_a_new_dora_adapter_is_the_identity_up_to_rounding(tiny_folder: Path, texts: list[str]) -> None:
    embedder = load_embedder(tiny_folder)
    before = encode(embedder, texts)
    add_lora(embedder, use_dora=True)
    torch.testing.assert_close(encode(embedder, texts), before, rtol=0, atol=1e-6)


def test_a_new_adapter_is_the_identity(tiny_folder: Path, texts: list[str]) -> None:
    embedder = load_embedder(tiny_folder)
    before = encode(embedder, texts)
    add_lora(embedder)
    assert torch.equal(encode(embedder, texts), before)


def test_factors_are_float32_over_a_bfloat16_base(tiny_folder: Path) -> None:
    embedder = load_embedder(tiny_folder, dtype=torch.bfloat16)
    add_lora(embedder, r=2)
    for name, parameter in embedder.named_parameters():
        assert parameter.dtype == (torch.float32 if ".lora_" in name else torch.bfloat16), name


def test_the_seed_decides_the_factors_and_the_global_random_state_is_kept(tiny_folder: Path) -> None:
    def factors(seed: int) -> list[torch.Tensor]:
        embedder = load_embedder(tiny_folder)
        add_lora(embedder, r=2, seed=seed)
        return [each for name, each in embedder.named_parameters() if ".lora_A." in name]

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, same, other = factors(1), factors(1), factors(2)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("adapt_top", [0, -1, 3])
def test_more_layers_than_there_are_is_refused(adapt_top: int, tiny_folder: Path) -> None:
    embedder = load_embedder(tiny_folder)
    with pytest.raises(ValueError, match=rf"--adapt-top: expected a number of layers from 1 to 2 .*, got {adapt_top};"):
        add_lora(embedder, adapt_top=adapt_top)
    assert not adapted_names(embedder)


@pytest.mark.parametrize("target", ["c_attn", "pooler.dense", "proj", "norm"])
def test_a_target_that_is_in_no_block_is_refused(target: str, bert_folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"--lora\.targets: expected names of linear layers in this model's blocks"
    ) as caught:
        add_lora(load_embedder(bert_folder), targets=["query", target])
    assert f"got {target!r}" in str(caught.value)
    assert "dense, key, query, value" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, "--lora.r: expected a rank"),
        ({"alpha": 0}, "--lora.alpha: expected at least 1, got 0"),
        ({"dropout": 1.0}, "--lora.dropout"),
        ({"dropout": -0.1}, "--lora.dropout"),
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, float], message: str, tiny_folder: Path) -> None:
    with pytest.raises(ValueError, match=message):
        add_lora(load_embedder(tiny_folder), **settings)  # type: ignore[arg-type]


def test_a_second_adapter_is_refused(tiny_folder: Path) -> None:
    embedder = load_embedder(tiny_folder)
    add_lora(embedder)
    with pytest.raises(ValueError, match="expected an embedder without an adapter"):
        add_lora(embedder)


def test_minilm_has_six_blocks_of_six_linear_layers() -> None:
    model = load_embedder("all-minilm")[0].model
    name, stack = block_stack(model)
    assert (name, len(stack)) == ("encoder.layer", 6)
    assert len(target_modules(model)) == 36
    assert target_modules(model) == target_modules(model, targets=BACKBONES["all-minilm"].lora_targets)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="model Linear: expected a list of None transformer blocks"):
        target_modules(nn.Linear(2, 2))
