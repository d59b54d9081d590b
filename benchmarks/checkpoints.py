"""Checkpoints to merge, written a tensor at a time: the shapes of Qwen3-0.6B, or a tiny Llama."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from storage.tensor_file import Entry, TensorFileWriter, bytes_of, write_tensors

HIDDEN, INNER = 1024, 3072
RELATIVE_CHANGE = 0.03
"""Noise of each checkpoint, relative to the standard deviation of the tensor."""
SEEDS_OF_A_CHECKPOINT = 10**6


@dataclass(frozen=True)
class Size:
    """What tells checkpoints of Qwen3-0.6B's widths apart."""

    layers: int = 28
    vocabulary: int = 151936

    @property
    def bytes(self) -> int:
        return 2 * sum(torch.Size(shape).numel() for _, shape in shapes(self))


def shapes(size: Size) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the tensors of a Qwen3 in the order of its files."""
    yield "model.embed_tokens.weight", (size.vocabulary, HIDDEN)
    for layer in range(size.layers):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (HIDDEN,)
        yield prefix + "mlp.down_proj.weight", (HIDDEN, INNER)
        yield prefix + "mlp.gate_proj.weight", (INNER, HIDDEN)
        yield prefix + "mlp.up_proj.weight", (INNER, HIDDEN)
        yield prefix + "post_attention_layernorm.weight", (HIDDEN,)
        yield prefix + "self_attn.k_norm.weight", (128,)
        yield prefix + "self_attn.k_proj.weight", (1024, HIDDEN)
        yield prefix + "self_attn.o_proj.weight", (HIDDEN, 2048)
        yield prefix + "self_attn.q_norm.weight", (128,)
        yield prefix + "self_attn.q_proj.weight", (2048, HIDDEN)
        yield prefix + "self_attn.v_proj.weight", (1024, HIDDEN)
    yield "model.norm.weight", (HIDDEN,)


def write_checkpoint(folder: Path, number: int, size: Size) -> Path:
    """Write checkpoint ``number`` (0, 1, ...) near a base that all of them share, in bfloat16."""
    folder.mkdir(parents=True)
    names = dict(shapes(size))
    entries = [Entry(name, "BF16", shape) for name, shape in names.items()]
    with TensorFileWriter(folder / "model.safetensors", entries, {"format": "pt"}) as writer:
        for place, (name, shape) in enumerate(names.items()):
            base = _normal(shape, place)
            noise = _normal(shape, SEEDS_OF_A_CHECKPOINT * (number + 1) + place)
            writer.write(name, bytes_of(base.add_(noise, alpha=RELATIVE_CHANGE).mul_(0.02).bfloat16()))
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": size.layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": size.vocabulary,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_tiny_llama(folder: Path, number: int, *, change: float = 0.1) -> Path:
    """Write a Llama of two layers in float32: a base (number 0), or one that differs from it by ``change``."""
    folder.mkdir(parents=True)
    hidden, inner, vocabulary, layers = 32, 48, 64, 2
    shape_of: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shape_of |= {f"{prefix}self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
        shape_of |= {f"{prefix}mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        shape_of |= {f"{prefix}mlp.down_proj.weight": (hidden, inner)}
        shape_of |= {f"{prefix}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    shape_of |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
    write_tensors(
        folder / "model.safetensors",
        {name: _near(shape, place, number, change) for place, (name, shape) in enumerate(shape_of.items())},
        {"format": "pt"},
    )
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": vocabulary,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _near(shape: tuple[int, ...], place: int, number: int, change: float) -> Tensor:
    base = _normal(shape, place)
    return base if number == 0 else base + change * _normal(shape, SEEDS_OF_A_CHECKPOINT * number + place)


def _normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
