"""The LoRA adapter inside an embedder: attach it, read its tensors, put tensors back; strict in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from models.dense import DENSE_FILE, carry_dense, dense_state, read_dense
from models.quiet import quiet_loading
from storage.tensor_file import read_tensors

ADAPTER_FILE = "adapter_model.safetensors"


def find_adapter(embedder: SentenceTransformer) -> PeftModel | None:
    """The PEFT model inside the embedder's first module, or None when the embedder has no adapter."""
    model = transformer_of(embedder)
    return model if isinstance(model, PeftModel) else None


def transformer_of(embedder: SentenceTransformer) -> nn.Module:
    """The transformers (or PEFT) model inside the embedder's first module."""
    model = embedder[0].model
    assert isinstance(model, nn.Module), type(model)
    return model


def attach_adapter(embedder: SentenceTransformer, folder: Path) -> PeftModel:
    """Put the LoRA adapter of `folder` on the embedder, frozen; every key of the file must match and be matched.

    Dense weights that were trained beside it (dense.safetensors) take the place of the embedder's.

    Raises:
        ValueError: when it is no LoRA adapter, its targets are not in the model, or a key or shape differs.
    """
    config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, LoraConfig):
        raise ValueError(
            f"adapter {folder}: expected peft_type LORA, got {config.peft_type}; give a LoRA adapter folder"
        )
    if find_adapter(embedder) is not None:
        raise ValueError(f"adapter {folder}: expected an embedder without an adapter, got one; load the base again")
    tensors, dense = read_tensors(folder / ADAPTER_FILE), read_dense(folder)
    # Left in, PEFT would warn of every base that is found under another path or by its hub id.
    config.base_model_name_or_path = None
    with quiet_loading():
        model = get_peft_model(transformer_of(embedder), config)
    embedder[0].model = model
    if dense:
        carry_dense(embedder, trainable=False)
    files = f"{folder / ADAPTER_FILE} and {DENSE_FILE}" if dense else str(folder / ADAPTER_FILE)
    load_adapter_weights(embedder, tensors | dense, source=files)
    return model


def adapter_state(embedder: SentenceTransformer) -> dict[str, Tensor]:
    """What training changes: the adapter's tensors under PEFT's names, or all weights where there is no adapter.

    Dense weights that are trained beside the adapter are there too, as ``dense.2.linear.weight``; `split_state`
    tells the two apart. The tensors are contiguous copies on the CPU, so that a later step does not change them.
    """
    model = find_adapter(embedder)
    if model is None:
        state = embedder.state_dict()
    else:
        # "auto" would ask the hub whether the vocabulary grew.
        state = get_peft_model_state_dict(model, save_embedding_layers=False) | dense_state(embedder)
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}


def split_state(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state of an embedder with an adapter as its two files hold it: PEFT's tensors, and the Dense weights."""
    dense = {name: tensor for name, tensor in state.items() if name.startswith("dense.")}
    return {name: tensor for name, tensor in state.items() if name not in dense}, dense


def load_adapter_weights(
    embedder: SentenceTransformer, tensors: Mapping[str, Tensor], *, source: str = "checkpoint"
) -> None:
    """Put back what `adapter_state` gave; nothing is changed unless every name and shape agrees.

    Raises:
        ValueError: names a tensor that is missing, left over or of another shape.
    """
    expected = adapter_state(embedder)
    if missing := sorted(expected.keys() - tensors.keys()):
        raise ValueError(
            f"{source}: expected {len(expected)} tensors of this model, {len(missing)} missing, first {missing[0]}; "
            "use the base, rank and targets it was trained with"
        )
    if unexpected := sorted(tensors.keys() - expected.keys()):
        raise ValueError(
            f"{source}: expected {len(expected)} tensors of this model, got {len(unexpected)} others, first "
            f"{unexpected[0]}; use the base, rank and targets it was trained with"
        )
    for name, tensor in expected.items():
        if tensor.shape != tensors[name].shape:
            raise ValueError(
                f"{source}: expected shape {tuple(tensor.shape)} for {name}, got {tuple(tensors[name].shape)}; "
                "use the base, rank and targets it was trained with"
            )
    model = find_adapter(embedder)
    with torch.no_grad():
        if model is None:
            embedder.load_state_dict(dict(tensors), strict=True)
        else:
            factors, _ = split_state(tensors)
            set_peft_model_state_dict(model, factors)
            for name, own in dense_state(embedder).items():
                own.copy_(tensors[name])
    after = adapter_state(embedder)
    different = [name for name in after if not torch.equal(after[name], tensors[name].to("cpu", after[name].dtype))]
    assert not different, f"{source}: not taken over: {different}"
