"""Nomic's mixture of experts: equal to its formulas, strict about its files, adapted and written back as the hub has it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModel

from models.attention import reads_ahead
from models.lora import target_modules
from models.nomic_config import NomicMoeConfig
from models.nomic_moe import NomicMoeModel, load_nomic_moe
from models.proof import check_tensors
from models.tiny_llm import build_tiny_llm
from tests.models.nomic_oracle import CONFIG, random_tensors, states_of, write_folder

TEXTS = [[0, 7, 8, 9, 2], [0, 11, 12, 13, 14, 15, 16, 17, 18, 19, 2], [0, 33, 2]]
EXPERTS = ["mlp.experts.mlp.w1", "mlp.experts.mlp.w2"]
LINEAR = ["Wqkv", "out_proj", "fc1", "fc2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("nomic") / "nomic-embed-text-v2-moe")


def padded_batch() -> dict[str, torch.Tensor]:
    longest = max(map(len, TEXTS))
    ids = [text + [1] * (longest - len(text)) for text in TEXTS]
    mask = [[1] * len(text) + [0] * (longest - len(text)) for text in TEXTS]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def adapted_model(folder: Path, **options: Any) -> PeftModel:
    """LoRA on every linear layer and on the experts, with B drawn so that each update is there."""
    torch.manual_seed(3)
    adapted = get_peft_model(
        load_nomic_moe(folder, **options),
        LoraConfig(r=2, lora_alpha=4, target_modules=LINEAR, target_parameters=EXPERTS),
    )
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return adapted


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_states_are_those_of_the_formulas_alone_and_in_a_padded_batch(folder: Path, attention: str) -> None:
    model = load_nomic_moe(folder)
    model.set_attn_implementation(attention)
    with torch.no_grad():
        together = model(**padded_batch()).last_hidden_state.double()
        for row, text in enumerate(TEXTS):
            wanted = states_of(random_tensors(), text)
            alone = model(input_ids=torch.tensor([text])).last_hidden_state[0].double()
            torch.testing.assert_close(alone, wanted, rtol=0, atol=1e-6)
            torch.testing.assert_close(together[row, : len(text)], wanted, rtol=0, atol=1e-6)


def test_published_model_has_the_tensors_and_parameters_of_its_card() -> None:
    with torch.device("meta"):
        model = NomicMoeModel(NomicMoeConfig())
    assert len(model.state_dict()) == 148
    assert sum(weight.numel() for weight in model.parameters()) == 475_292_928


def test_written_folder_has_the_hubs_tensors_and_settings_and_a_type_that_plain_transformers_refuses(
    folder: Path, tmp_path: Path
) -> None:
    load_nomic_moe(folder).save_pretrained(tmp_path)
    original, written = (load_file(each / "model.safetensors") for each in (folder, tmp_path))
    assert written.keys() == original.keys()
    assert all(torch.equal(written[name], original[name]) for name in original)
    settings = json.loads((tmp_path / "config.json").read_text())
    left = {name: (value, settings.get(name)) for name, value in CONFIG.items() if settings.get(name) != value}
    assert left.keys() <= {"torch_dtype", "model_type", "architectures"}
    with pytest.raises(ValueError, match="does not recognize this architecture"):
        AutoModel.from_pretrained(tmp_path)
    assert settings["dtype"] == "float32"
    again = load_nomic_moe(tmp_path)
    assert again.config.to_dict().items() >= {"n_layer": 4, "moe_every_n_layers": 2}.items()


def test_shards_are_read(folder: Path, tmp_path: Path) -> None:
    load_nomic_moe(folder).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = load_nomic_moe(tmp_path).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in random_tensors().items())


def test_dtype_of_the_files_is_kept_or_changed(folder: Path) -> None:
    assert {weight.dtype for weight in load_nomic_moe(folder).parameters()} == {torch.float32}
    model = load_nomic_moe(folder, dtype=torch.bfloat16)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        states = model(**padded_batch()).last_hidden_state
    assert states.dtype == torch.bfloat16
    wanted = states_of(random_tensors(), TEXTS[0])
    assert torch.cosine_similarity(states[0, :5].double(), wanted).min() > 0.99


def test_experts_run_in_mixed_precision(folder: Path) -> None:
    model = load_nomic_moe(folder)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(**padded_batch()).last_hidden_state.float().sum().backward()
    gradient = model.encoder.layers[1].mlp.experts.mlp.w1.grad
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_gradient_reaches_the_lora_of_every_layer_and_expert(folder: Path) -> None:
    adapted = adapted_model(folder)
    adapted(**padded_batch()).last_hidden_state.square()[..., 0].mean().backward()
    trained = {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert sum("experts" in name for name in trained) == 2 * 2 * 2  # two mixtures, two matrices, A and B
    assert {name for name, weight in trained.items() if weight.grad is None or not weight.grad.any()} == set()
    assert all(weight.grad is None for weight in adapted.parameters() if not weight.requires_grad)


def test_linear_layers_of_the_last_blocks_are_found(folder: Path) -> None:
    found = target_modules(load_nomic_moe(folder), targets=LINEAR, adapt_top=2)
    dense = [f"encoder.layers.2.{name}" for name in ("attn.Wqkv", "attn.out_proj", "mlp.fc1", "mlp.fc2")]
    assert sorted(found) == [*dense, "encoder.layers.3.attn.Wqkv", "encoder.layers.3.attn.out_proj"]


def test_gradient_checkpointing_changes_no_gradient(folder: Path) -> None:
    gradients = []
    blocks: list[int] = []  # the attention of a recomputed block runs twice
    for checkpointing in (False, True):
        adapted = adapted_model(folder).train()
        calls: list[int] = []
        for block in adapted.base_model.model.encoder.layers:
            block.attn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        if checkpointing:
            adapted.base_model.model.activation_checkpointing_enable({"use_reentrant": False})
        adapted(**padded_batch()).last_hidden_state[..., 0].square().mean().backward()
        blocks.append(len(calls))
        gradients.append({name: w.grad for name, w in adapted.named_parameters() if w.grad is not None})
    plain, checkpointed = gradients
    assert blocks == [4, 8]
    assert plain.keys() == checkpointed.keys()
    assert all(torch.allclose(plain[name], checkpointed[name], atol=1e-7) for name in plain)


def test_merged_adapter_is_the_formulas_on_the_summed_weights(folder: Path, tmp_path: Path) -> None:
    adapted = adapted_model(folder)
    with torch.no_grad():
        before = adapted(**padded_batch()).last_hidden_state
    adapted.merge_and_unload().save_pretrained(tmp_path)
    merged = load_file(tmp_path / "model.safetensors")
    assert merged.keys() == random_tensors().keys()
    changed = {name for name, tensor in random_tensors().items() if not torch.equal(tensor, merged[name])}
    assert {name.split("layers.1.")[1] for name in changed if "layers.1.mlp" in name} == set(EXPERTS)
    torch.testing.assert_close(before[0, :5].double(), states_of(merged, TEXTS[0]), rtol=0, atol=2e-6)


def test_adapter_folder_loads_over_the_model(folder: Path, tmp_path: Path) -> None:
    adapted = adapted_model(folder)
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(load_nomic_moe(folder), tmp_path)
    with torch.no_grad():
        assert torch.equal(adapted(**padded_batch())[0], again(**padded_batch())[0])


def test_it_serves_in_sentence_transformers(folder: Path, tmp_path: Path) -> None:
    embedder = build_tiny_llm(hidden_size=16, layers=1, heads=2, intermediate_size=24, max_tokens=64)
    embedder[0].model = load_nomic_moe(folder)
    texts = ["1, 2, 3", "4"]
    ids = [embedder.tokenizer(text)["input_ids"] for text in texts]
    assert max(map(max, ids)) < CONFIG["vocab_size"]
    means = torch.stack([states_of(random_tensors(), row).mean(dim=0) for row in ids])
    wanted = torch.nn.functional.normalize(means, dim=1)
    torch.testing.assert_close(embedder.encode(texts, convert_to_tensor=True).double(), wanted, rtol=0, atol=1e-6)
    assert reads_ahead(embedder)
    embedder.save_pretrained(str(tmp_path))
    check_tensors(embedder, tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == random_tensors().keys()


def _drop(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["encoder.layers.3.mlp.experts.mlp.w2"]


def _add(tensors: dict[str, torch.Tensor]) -> None:
    tensors["encoder.layers.3.mlp.fc1.weight"] = torch.zeros(24, 16)


def _flip(tensors: dict[str, torch.Tensor]) -> None:
    tensors["encoder.layers.1.mlp.experts.mlp.w2"] = torch.zeros(16, 192)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop, "expected 52 tensors of NomicMoeModel, 1 missing, first encoder.layers.3.mlp.experts.mlp.w2;"),
        (_add, "got 1 more, first encoder.layers.3.mlp.fc1.weight;"),
        (_flip, "tensor encoder.layers.1.mlp.experts.mlp.w2: expected shape (192, 16) of config.json, got (16, 192);"),
    ],
)
def test_other_tensors_are_refused_by_name(
    change: Callable[[dict[str, torch.Tensor]], None], message: str, tmp_path: Path
) -> None:
    tensors = random_tensors()
    change(tensors)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_nomic_moe(write_folder(tmp_path, tensors))


def test_folder_without_safetensors_is_refused(folder: Path, tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"expected model.safetensors or its shards and index, found none"):
        load_nomic_moe(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config.json: expected the model's configuration, found no file"):
        load_nomic_moe(tmp_path)
