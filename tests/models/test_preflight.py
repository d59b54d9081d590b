from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from models.backbones import BACKBONES
from models.embedder import load_embedder
from models.lora import add_lora
from models.losses import supervised_contrastive_loss
from models.nomic_moe import load_nomic_moe
from models.preflight import preflight
from models.tiny_llm import build_tiny_llm
from tests.models.nomic_oracle import write_folder


@pytest.fixture
def adapted(tiny_folder: Path) -> SentenceTransformer:
    embedder = load_embedder(tiny_folder)
    add_lora(embedder, r=2, dropout=0.1)
    return embedder


def layer_of(embedder: SentenceTransformer, path: str) -> nn.Module:
    return embedder[0].model.base_model.model.get_submodule(path)


def run(embedder: SentenceTransformer, texts: list[str], labels: Tensor, **settings: bool) -> None:
    preflight(embedder, texts, labels, supervised_contrastive_loss, **settings)


def test_a_living_adapter_passes(adapted: SentenceTransformer, texts: list[str], labels: Tensor) -> None:
    found = preflight(adapted, texts, labels, supervised_contrastive_loss)
    per_layer = 2 * (4 * (16 + 16) + 3 * (16 + 24))
    assert found.trainable == 2 * per_layer
    assert found.total == sum(each.numel() for each in adapted.parameters())
    assert len(found.adapted) == 14
    assert "layers.1.mlp.up_proj" in found.adapted
    assert found.unused == ()
    assert found.loss > 0


def test_nothing_is_changed(adapted: SentenceTransformer, texts: list[str], labels: Tensor) -> None:
    adapted.train()
    adapted[0].model.base_model.model.layers[0].eval()
    modes = [module.training for module in adapted.modules()]
    weights = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    trainable = [each.requires_grad for each in adapted.parameters()]
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    run(adapted, texts, labels)
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in adapted.modules()] == modes
    assert all(torch.equal(weights[name], tensor) for name, tensor in adapted.state_dict().items())
    assert [each.requires_grad for each in adapted.parameters()] == trainable
    assert all(each.grad is None for each in adapted.parameters())
    assert not any(module._forward_pre_hooks for module in adapted.modules())


def test_over_a_bfloat16_base_it_passes(tiny_folder: Path, texts: list[str], labels: Tensor) -> None:
    embedder = load_embedder(tiny_folder, dtype=torch.bfloat16)
    add_lora(embedder, r=2)
    run(embedder, texts, labels)


def dora(folder: Path, **settings: Any) -> SentenceTransformer:
    embedder = load_embedder(folder, **settings)
    add_lora(embedder, r=2, use_dora=True)
    return embedder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dora_adapter_passes(dtype: torch.dtype, tiny_folder: Path, texts: list[str], labels: Tensor) -> None:
    embedder = dora(tiny_folder, dtype=dtype)
    found = preflight(embedder, texts, labels, supervised_contrastive_loss)
    assert len(found.adapted) == 14
    assert found.trainable == 2 * (2 * (4 * (16 + 16) + 3 * (16 + 24)) + 4 * 16 + 2 * 24 + 16)


def test_a_dora_magnitude_that_is_not_the_rows_length(tiny_folder: Path, texts: list[str], labels: Tensor) -> None:
    embedder = dora(tiny_folder)
    with torch.no_grad():
        layer_of(embedder, "layers.1.mlp.up_proj").lora_magnitude_vector["default"].weight.mul_(1.01)
    with pytest.raises(ValueError, match="expected unchanged embeddings from a fresh adapter, got a change of"):
        run(embedder, texts, labels)


def test_a_frozen_or_rounded_dora_magnitude(tiny_folder: Path, texts: list[str], labels: Tensor) -> None:
    embedder = dora(tiny_folder)
    magnitude = layer_of(embedder, "layers.0.mlp.up_proj").lora_magnitude_vector["default"]
    magnitude.weight.requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"lora_magnitude_vector of layers\.0\.mlp\.up_proj to be trainable, got a froz"
    ):
        run(embedder, texts, labels)
    magnitude.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"lora_magnitude_vector of layers\.0\.mlp\.up_proj in float32, got torch\.bf"):
        run(embedder, texts, labels)


def test_experts_are_named_by_their_weights(tmp_path: Path, texts: list[str], labels: Tensor) -> None:
    embedder = build_tiny_llm(hidden_size=16, layers=1, heads=2, intermediate_size=24, max_tokens=64)
    embedder[0].model = load_nomic_moe(write_folder(tmp_path / "nomic"))
    add_lora(embedder, r=2, expert_parameters=BACKBONES["nomic-moe"].expert_parameters)
    found = preflight(embedder, texts, labels, supervised_contrastive_loss)
    assert {name for name in found.adapted if "experts" in name} == {
        f"encoder.layers.{layer}.mlp.experts.mlp.{name}" for layer in (1, 3) for name in ("w1", "w2")
    }
    assert len(found.adapted) == 4 * 2 + 2 * 2 + 4
    layer_of(embedder, "encoder.layers.1.mlp.experts.mlp").forward = lambda states, *_: torch.zeros_like(states)
    with pytest.raises(ValueError, match=r"use the adapter on encoder\.layers\.1\.mlp\.experts\.mlp\.w., but it never"):
        run(embedder, texts, labels)


def test_an_adapter_that_the_forward_does_not_use(bert_folder: Path, texts: list[str], labels: Tensor) -> None:
    """BERT's pooler runs, but no embedding reads it: no gradient."""
    from peft import LoraConfig, get_peft_model

    embedder = load_embedder(bert_folder)
    embedder.requires_grad_(False)
    config = LoraConfig(r=2, target_modules=["query", "pooler.dense"], task_type="FEATURE_EXTRACTION")
    embedder[0].model = get_peft_model(embedder[0].model, config)
    with pytest.raises(ValueError, match=r"gradient for lora_B of pooler\.dense, got none"):
        run(embedder, texts, labels)


def test_an_adapter_that_is_never_called(adapted: SentenceTransformer, texts: list[str], labels: Tensor) -> None:
    block = layer_of(adapted, "layers.1")
    block.mlp.forward = lambda states: torch.zeros_like(states)
    with pytest.raises(ValueError, match=r"use the adapter on layers\.1\.mlp\.gate_proj, but it never does"):
        run(adapted, texts, labels)


@pytest.mark.parametrize("kind", ["lora_A", "lora_B"])
def test_a_frozen_factor(kind: str, adapted: SentenceTransformer, texts: list[str], labels: Tensor) -> None:
    getattr(layer_of(adapted, "layers.0.self_attn.q_proj"), kind)["default"].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=rf"{kind} of layers\.0\.self_attn\.q_proj to be trainable, got a frozen one"):
        run(adapted, texts, labels)


def test_a_factor_in_bfloat16(adapted: SentenceTransformer, texts: list[str], labels: Tensor) -> None:
    layer_of(adapted, "layers.0.mlp.up_proj").lora_A["default"].to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"lora_A of layers\.0\.mlp\.up_proj in float32, got torch\.bfloat16"):
        run(adapted, texts, labels)


@pytest.mark.parametrize(
    "path", ["layers.0.self_attn.q_proj.base_layer", "layers.1.mlp.up_proj.lora_A.default", "norm"]
)
def test_weights_that_are_not_finite(path: str, adapted: SentenceTransformer, texts: list[str], labels: Tensor) -> None:
    with torch.no_grad():
        layer_of(adapted, path).weight.view(-1)[0] = torch.nan
    with pytest.raises(ValueError, match="expected finite weights") as caught:
        run(adapted, texts, labels)
    assert f"{path}.weight" in str(caught.value)


def test_an_adapter_that_is_not_fresh(adapted: SentenceTransformer, texts: list[str], labels: Tensor) -> None:
    with torch.no_grad():
        layer_of(adapted, "layers.1.mlp.down_proj").lora_B["default"].weight[0, 0] = 1e-4
    with pytest.raises(
        ValueError, match=r"fresh adapter \(lora_B = 0\), got a non-zero one on layers\.1\.mlp\.down_proj"
    ):
        run(adapted, texts, labels)


def test_a_trained_adapter_passes_as_such_and_needs_gradients_for_both_factors(
    adapted: SentenceTransformer, texts: list[str], labels: Tensor
) -> None:
    with pytest.raises(ValueError, match=r"gradient for lora_A of .*, got zero"):
        run(adapted, texts, labels, fresh=False)
    for name, parameter in adapted.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.1)
    run(adapted, texts, labels, fresh=False)


def test_a_fresh_adapter_beside_a_changed_base(adapted: SentenceTransformer, texts: list[str], labels: Tensor) -> None:
    """The adapter is zero, and yet switching it off changes the embeddings: something else is in its path."""
    layer = layer_of(adapted, "layers.0.mlp.up_proj")
    layer.register_forward_hook(lambda module, _, out: out if module.disable_adapters else out * 1.1)
    with pytest.raises(ValueError, match="expected unchanged embeddings from a fresh adapter"):
        run(adapted, texts, labels)


def test_a_loss_cut_off_from_the_model(adapted: SentenceTransformer, texts: list[str], labels: Tensor) -> None:
    with pytest.raises(ValueError, match="a loss that depends on trainable weights"):
        preflight(adapted, texts, labels, lambda z, y: supervised_contrastive_loss(z.detach(), y))


def test_a_loss_that_is_not_finite(adapted: SentenceTransformer, texts: list[str], labels: Tensor) -> None:
    with pytest.raises(ValueError, match="expected a finite loss, got nan"):
        preflight(adapted, texts, labels, lambda z, _: z.sum() * torch.nan)


def test_a_loss_without_slope(adapted: SentenceTransformer, texts: list[str], labels: Tensor) -> None:
    with pytest.raises(ValueError, match=r"gradient for lora_B of .*, got zero"):
        preflight(adapted, texts, labels, lambda z, _: (z * 0).sum())


def test_after_a_failure_all_is_as_before(adapted: SentenceTransformer, texts: list[str], labels: Tensor) -> None:
    adapted.eval()
    with pytest.raises(ValueError, match="got zero"):
        preflight(adapted, texts, labels, lambda z, _: (z * 0).sum())
    assert not any(module.training for module in adapted.modules())
    assert all(each.grad is None for each in adapted.parameters())
    assert not any(module._forward_pre_hooks for module in adapted.modules())


def test_unused_weights_of_a_whole_model_are_frozen_and_named(
    bert_folder: Path, texts: list[str], labels: Tensor
) -> None:
    embedder = load_embedder(bert_folder)
    found = preflight(embedder, texts, labels, supervised_contrastive_loss)
    assert found.unused == ("0.model.pooler.dense.weight", "0.model.pooler.dense.bias")
    assert {name for name, each in embedder.named_parameters() if not each.requires_grad} == set(found.unused)
    assert found.trainable == found.total - 16 * 16 - 16
    assert preflight(embedder, texts, labels, supervised_contrastive_loss).unused == ()


def test_a_whole_model_without_slope_is_refused(tiny_folder: Path, texts: list[str], labels: Tensor) -> None:
    with pytest.raises(ValueError, match="expected a non-zero gradient for some weight, got none"):
        preflight(load_embedder(tiny_folder), texts, labels, lambda z, _: (z * 0).sum())
