"""What training holds, against what autograd keeps and AdamW has."""

from dataclasses import replace

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from transformers import Gemma2Config, Gemma2Model, Qwen3Config, Qwen3Model

from models.adapter import transformer_of
from models.backbones import BACKBONES
from models.checkpointing import checkpoint_blocks
from models.embedder import load_embedder
from models.lora import add_lora, target_modules
from models.sizes import model_sizes
from models.training_memory import training_memory
from tests.models.hub_folders import tiny_rows, write_hub_folder


def kept_by_autograd(model, *, texts, tokens, mixed):
    """Bytes that one forward pass keeps for the backward pass, the weights themselves left out."""
    own = {each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    ids = torch.randint(0, 50, (texts, tokens), generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", enabled=mixed):
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return sum(size for size, _ in kept.values())


SHAPE = {"vocab_size": 60, "hidden_size": 96, "intermediate_size": 288, "num_hidden_layers": 3, "head_dim": 24}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.parametrize(
    ("build", "configure", "dtype", "precision"),
    [
        (Qwen3Model, Qwen3Config, torch.float32, "32-true"),
        (Qwen3Model, Qwen3Config, torch.bfloat16, "32-true"),
        (Qwen3Model, Qwen3Config, torch.float32, "bf16-mixed"),
        (Qwen3Model, Qwen3Config, torch.bfloat16, "bf16-mixed"),
        (Gemma2Model, Gemma2Config, torch.float32, "32-true"),
    ],
)
def test_activations_are_within_a_quarter_of_what_autograd_keeps(tmp_path, build, configure, dtype, precision):
    model = build(configure(**SHAPE, **HEADS)).to(dtype)
    model.save_pretrained(tmp_path / "model")
    sizes = model_sizes(tmp_path / "model", r=2)
    assert (sizes.eager_heads > 0) == (build is Gemma2Model)
    adapted = get_peft_model(model, PeftConfig(r=2, target_modules=target_modules(model))).train()
    kept = kept_by_autograd(adapted, texts=4, tokens=48, mixed=precision == "bf16-mixed")
    estimate = training_memory(sizes, texts=4, tokens=48, precision=precision)["activations"]
    assert 0.75 < estimate / kept < 1.25


def test_the_states_are_those_of_adamw(tiny_folder):
    embedder = load_embedder(tiny_folder)
    add_lora(embedder, r=4)
    weights = [each for each in embedder.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(weights)
    embedder(embedder.preprocess(["1, 2"]))["sentence_embedding"].sum().backward()
    optimizer.step()
    moments = sum(t.nbytes for state in optimizer.state.values() for t in state.values() if t.ndim)
    memory = training_memory(model_sizes(tiny_folder, r=4), texts=1, tokens=1)
    assert memory["optimizer"] == moments
    assert memory["gradients"] == memory["adapter"] == sum(each.grad.nbytes for each in weights)


def test_devices_precision_and_the_copy_at_the_end_of_a_stage(tiny_folder):
    sizes = model_sizes(tiny_folder, r=4)
    one, two = (training_memory(sizes, texts=8, tokens=64, devices=devices) for devices in (1, 2))
    assert one["buckets"] == 0
    assert two["buckets"] == two["gradients"]
    half = training_memory(sizes, texts=8, tokens=64, precision="bf16-true")
    assert half["weights"] == 2 * sizes.parameters
    assert 2 * half["optimizer"] == one["optimizer"]
    short = training_memory(sizes, texts=1, tokens=1)
    assert short["peak"] == short["stage_end"] == 2 * sizes.weight_bytes + 4 * 4 * sizes.trainable
    with pytest.raises(ValueError, match=r"--precision: expected one of 32-true, .* got '8-true'"):
        training_memory(sizes, texts=8, tokens=64, precision="8-true")


def adapted(name, width, folder, *, quantization="none", **how):
    """A small hub model with an adapter, in training mode, and its counts."""
    row = BACKBONES[name]
    how |= {"r": 2, "targets": row.lora_targets, "expert_parameters": row.expert_parameters}
    path = write_hub_folder(folder, name, width=width)
    with tiny_rows(width):
        embedder = load_embedder(name, cache=folder, offline=True, quantization=quantization)
    add_lora(embedder, **how)
    return embedder.train(), model_sizes(path, row=row, quantization=quantization, **how)


@pytest.mark.parametrize(
    ("name", "width", "how"),
    [
        ("e5-mistral", 64, {"use_dora": True}),
        ("e5-mistral", 64, {"quantization": "nf4"}),
        ("e5-mistral", 64, {"quantization": "int8"}),
        ("gte-multilingual", 64, {}),
        ("nomic-moe", 16, {}),
    ],
)
def test_activations_of_other_adapters_and_bases(name, width, how, tmp_path):
    embedder, sizes = adapted(name, width, tmp_path, **how)
    kept = kept_by_autograd(transformer_of(embedder), texts=4, tokens=48, mixed=False)
    assert 0.75 < training_memory(sizes, texts=4, tokens=48)["activations"] / kept < 1.25


def test_with_checkpointing_a_block_s_activations_and_the_inputs_of_all(tmp_path):
    embedder, sizes = adapted("e5-mistral", 64, tmp_path)
    model = transformer_of(embedder)
    block = kept_by_autograd(model, texts=4, tokens=48, mixed=False) / sizes.blocks
    checkpoint_blocks(embedder)
    inputs = kept_by_autograd(model, texts=4, tokens=48, mixed=False)
    estimate = training_memory(sizes, texts=4, tokens=48, gradient_checkpointing=True)["activations"]
    assert 0.75 < estimate / (block + inputs) < 1.25
    deep = replace(sizes, blocks=32)
    saved, whole = (
        training_memory(deep, texts=4, tokens=48, gradient_checkpointing=each)["activations"] for each in (True, False)
    )
    assert 5 * saved < whole


def test_fsdp_spreads_what_is_held_and_gathers_a_block(tiny_folder):
    sizes = model_sizes(tiny_folder, r=4)
    alone, shared, spread = (
        training_memory(sizes, texts=2, tokens=16, devices=devices, strategy=strategy)
        for devices, strategy in ((1, "fsdp"), (4, "ddp"), (4, "fsdp"))
    )
    assert alone == training_memory(sizes, texts=2, tokens=16)
    for part in ("weights", "adapter", "gradients", "optimizer"):
        assert spread[part] == -(-shared[part] // 4)
    assert (spread["buckets"], shared["gathered"]) == (0, 0)
    assert spread["gathered"] == sizes.weight_bytes - (sizes.blocks - 1) * sizes.block_bytes


def test_a_cast_leaves_few_bits_as_they_are(tmp_path):
    embedder, sizes = adapted("e5-mistral", 64, tmp_path, quantization="nf4")
    linear = sizes.packed_parameters
    layers = [each for each in embedder.modules() if isinstance(each, Linear4bit)]
    assert linear == sum(each.in_features * each.out_features for each in layers)
    cast = training_memory(sizes, texts=1, tokens=1, precision="bf16-true")["weights"]
    assert cast == sizes.packed_bytes + 2 * (sizes.parameters - linear)
