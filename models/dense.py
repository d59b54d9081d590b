"""The Dense modules behind the transformer (embeddinggemma has two), trained beside an adapter and carried with it.

A PEFT adapter holds tensors of the transformer only. Trained Dense weights lie beside it in a file of their own, so
that plain PEFT still loads the adapter; plain PEFT does not know of them, and `load_embedder` does.
"""

from __future__ import annotations

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense
from torch import Tensor, nn

from storage.hashing import sha256_of
from storage.json_file import read_json
from storage.manifest import MANIFEST
from storage.tensor_file import read_tensors

DENSE_FILE = "dense.safetensors"
"""In a stage's folder; names as `dense_state` gives them."""
CARRIED = "carried_with_adapter"


def carry_dense(embedder: SentenceTransformer, *, trainable: bool) -> tuple[str, ...]:
    """Make the Dense modules part of what the adapter is: float32, trainable or frozen, and in `dense_state`.

    Over a transformer of lower precision the first of them gets its input in float32.

    Args:
        embedder: with Dense modules.
        trainable: whether training changes them from here on.

    Returns:
        Their places among the embedder's modules, such as ``("2", "3")``.

    Raises:
        ValueError: the embedder has none.

    Example:
        >>> from sentence_transformers.sentence_transformer.modules import Dense
        >>> embedder = SentenceTransformer(modules=[Dense(8, 4, bias=False)], device="cpu")
        >>> carry_dense(embedder, trainable=True)
        ('0',)
        >>> {name: tuple(tensor.shape) for name, tensor in dense_state(embedder).items()}
        {'dense.0.linear.weight': (4, 8)}
    """
    modules = {place: module for place, module in embedder.named_children() if isinstance(module, Dense)}
    if not modules:
        names = ", ".join(type(module).__name__ for module in embedder.children())
        raise ValueError(f"--lora.dense train: expected a model with Dense modules, got {names}; leave it at freeze")
    for module in modules.values():
        if not is_carried(module):
            setattr(module, CARRIED, True)
            module.register_forward_pre_hook(_input_in_own_precision)
        module.to(torch.float32).requires_grad_(trainable)
    # With a device map (a base in few bits has one) the first encode() would cast them to the transformer's precision.
    embedder._modules_placed = True
    return tuple(modules)


def is_carried(module: nn.Module) -> bool:
    """Whether `carry_dense` has made the module part of the adapter."""
    return bool(getattr(module, CARRIED, False))


def dense_state(embedder: SentenceTransformer) -> dict[str, Tensor]:
    """The carried Dense weights, ``dense.PLACE.NAME``; empty where none is carried. They are not copies."""
    return {
        f"dense.{place}.{name}": tensor
        for place, module in embedder.named_children()
        if is_carried(module)
        for name, tensor in module.state_dict().items()
    }


def read_dense(folder: Path) -> dict[str, Tensor]:
    """The Dense weights of an adapter folder; empty where it has none and its manifest names none.

    Raises:
        ValueError: the manifest names the file, and it is gone or has another content.
    """
    file = folder / DENSE_FILE
    files = read_json(folder / MANIFEST).get("files", {}) if (folder / MANIFEST).is_file() else {}
    if not file.is_file():
        if DENSE_FILE in files:
            raise ValueError(f"{file}: expected the Dense weights that {MANIFEST} names, found no file; restore it")
        return {}
    if DENSE_FILE in files and sha256_of(file) != files[DENSE_FILE]["sha256"]:
        raise ValueError(f"{file}: expected the content of {MANIFEST}, got another; restore the folder")
    return read_tensors(file)


def _input_in_own_precision(module: nn.Module, inputs: tuple[dict[str, Tensor]]) -> None:
    features = inputs[0]
    assert isinstance(module, Dense)
    features[module.module_input_name] = features[module.module_input_name].to(module.linear.weight.dtype)
