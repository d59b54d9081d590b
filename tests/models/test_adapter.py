"""What an adapter's state holds over bases of every precision, and that it goes back bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from sentence_transformers import SentenceTransformer

from models.adapter import adapter_state, attach_adapter, load_adapter_weights
from models.embedder import encode, load_embedder
from models.export import save_adapter, save_embedder
from models.lora import add_lora
from models.losses import supervised_contrastive_loss
from models.preflight import preflight
from models.tiny_llm import build_tiny_llm

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("none", {"use_dora": True}),
    ("none", {"use_rslora": True}),
    ("nf4", {}),
    ("nf4", {"use_dora": True}),
    ("fp4", {"use_rslora": True}),
    ("int8", {}),
]


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of width 64, the least that 4 bits take."""
    embedder = build_tiny_llm(hidden_size=64, layers=2, heads=2, intermediate_size=64, max_tokens=64, seed=1)
    return save_embedder(embedder, tmp_path_factory.mktemp("models") / "wide")


def train(embedder: SentenceTransformer, texts: list[str], labels: torch.Tensor) -> None:
    embedder.train()
    optimizer = torch.optim.AdamW([each for each in embedder.parameters() if each.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        supervised_contrastive_loss(embedder(embedder.preprocess(texts))["sentence_embedding"], labels).backward()
        optimizer.step()
    embedder.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("quantization", "way"), KINDS)
def test_the_state_of_every_kind_goes_back_bit_for_bit(
    quantization: Any,
    way: dict[str, Any],
    dtype: torch.dtype,
    wide_folder: Path,
    texts: list[str],
    labels: torch.Tensor,
) -> None:
    def adapted(seed: int) -> SentenceTransformer:
        embedder = load_embedder(wide_folder, quantization=quantization, dtype=dtype)
        base = [each.clone() for each in embedder.parameters()]
        add_lora(embedder, r=2, seed=seed, **way)
        frozen = [each for name, each in embedder.named_parameters() if ".lora_" not in name]
        assert not any(each.requires_grad for each in frozen)
        assert all(torch.equal(now, then) and now.dtype == then.dtype for now, then in zip(frozen, base, strict=True))
        return embedder

    embedder = adapted(0)
    found = preflight(embedder, texts, labels, supervised_contrastive_loss)
    assert len(found.adapted) == 14
    before = encode(embedder, texts)
    train(embedder, texts, labels)
    after = encode(embedder, texts)
    assert (after - before).abs().max() > 1e-2
    preflight(embedder, texts, labels, supervised_contrastive_loss, fresh=False)
    state = adapter_state(embedder)
    assert {each.dtype for each in state.values()} == {torch.float32}
    assert len(state) == 14 * (3 if "use_dora" in way else 2)
    again = adapted(1)
    load_adapter_weights(again, state)
    assert torch.equal(encode(again, texts), after)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_saved_dora_adapter_attaches_with_its_magnitudes(
    quantization: Any, wide_folder: Path, texts: list[str], labels: torch.Tensor, tmp_path: Path
) -> None:
    embedder = load_embedder(wide_folder, quantization=quantization)
    add_lora(embedder, r=2, use_dora=True)
    train(embedder, texts, labels)
    stage = save_adapter(embedder, tmp_path / "stage", base_name=str(wide_folder), base_folder=wide_folder)
    again = load_embedder(wide_folder, quantization=quantization)
    attach_adapter(again, stage)
    assert torch.equal(encode(again, texts), encode(embedder, texts))


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_magnitudes_are_the_lengths_of_the_rows_in_float32(quantization: Any, wide_folder: Path) -> None:
    """PEFT alone rounds them to the base's bfloat16, 1 in 256."""
    embedder = load_embedder(wide_folder, quantization=quantization, dtype=torch.bfloat16)
    add_lora(embedder, r=2, use_dora=True)
    layer = embedder[0].model.base_model.model.layers[1].mlp.up_proj
    weight = layer.base_layer.weight
    rows = weight.detach() if quantization == "none" else dequantize_4bit(weight.data, weight.quant_state)
    found = layer.lora_magnitude_vector["default"].weight
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.detach().double(), rows.double().norm(dim=1), rtol=1e-6, atol=0)


def test_dora_over_int8_is_refused_on_the_cpu(wide_folder: Path) -> None:
    embedder = load_embedder(wide_folder, quantization="int8")
    with pytest.raises(ValueError, match=r"--lora\.use-dora: .* got int8, .*; take --lora\.quantization nf4"):
        add_lora(embedder, r=2, use_dora=True)
