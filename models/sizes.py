"""model_sizes: what a model weighs, by its config.json alone: the transformer is built on the meta device, no weight is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from models.adapter import transformer_of
from models.backbones import Backbone
from models.few_bits import packed_layers, weight_bytes
from models.lora import block_stack, target_modules, target_parameters
from models.native_config import native_folder
from models.nomic_config import NomicMoeConfig, read_nomic_config
from models.nomic_moe import NomicMoeModel
from models.nomic_type import is_nomic_moe
from models.quantised import Quantisation
from models.quiet import quiet_loading
from models.tiny_encoder import build_tiny_encoder
from storage.json_file import read_json
from storage.manifest import weight_files
from storage.tensor_file import read_header, torch_dtypes

ENCODERS_OF_TWO = ("t5", "mt5", "umt5", "longt5")
"""Encoder-decoders of which sentence-transformers loads the encoder only."""


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """Counts of one model, and the shape of its blocks."""

    parameters: int
    """Weights of the model without an adapter."""
    trainable: int
    """Weights that are trained: the adapter's (and the Dense modules', where these are), or all of a model without an adapter."""
    trained_dense: int = 0
    """Of ``trainable``, those of Dense modules; they are in ``parameters`` too."""
    adapted: int
    """Linear layers and stacks of experts with an adapter; 0 when all weights are trained."""
    stored_bytes: int
    """Bytes of the weights and buffers as the folder has them, which is how a merge is loaded."""
    weight_bytes: int
    """Bytes of the weights and buffers as they are loaded for training; Dense modules that are trained are left out."""
    packed_bytes: int = 0
    """Of ``weight_bytes``, what is in few bits."""
    packed_parameters: int = 0
    """Weights that are in few bits."""
    block_bytes: int
    """Bytes of the largest block, as it is loaded."""
    outside_bytes: int
    """Bytes of what lies outside the blocks, such as the token embeddings."""
    dtype: torch.dtype
    """Precision of the weights as they are loaded."""
    blocks: int
    width: int
    intermediate: int
    gated: bool
    """Whether the blocks multiply two projections of the intermediate width."""
    experts_a_token: int = 1
    """Experts that read a token."""
    adapted_experts: int = 0
    """Numbers of the expert stacks with an adapter; their sums with it are held for the backward pass."""
    block_experts: int = 0
    """Of ``adapted_experts``, the most that one block has."""
    dora_outputs: int = 0
    """Outputs of the layers of a block that have a length of their own (DoRA)."""
    header_bytes: int
    """Of the safetensors file with the trained weights, what stands before them."""
    eager_heads: int
    """Attention heads whose scores are held in full; 0 with a kernel that does not."""


def model_sizes(
    folder: Path | None,
    *,
    row: Backbone | None = None,
    r: int = 16,
    targets: Sequence[str] | None = None,
    adapt_top: int | None = None,
    use_dora: bool = False,
    expert_parameters: Sequence[str] = (),
    dense: Literal["freeze", "train"] = "freeze",
    dtype: torch.dtype | None = None,
    quantization: Quantisation = "none",
) -> ModelSizes:
    """Count a model and the LoRA adapter that `add_lora` would put on it, without reading weights.

    Besides the transformer, Dense modules are counted by their own config.json; other modules of sentence-transformers with
    weights (LSTM, CNN) are not.

    Args:
        folder: of a transformers or sentence-transformers model, from ``models.base_folder``; None for a `row` that is drawn
            from its seed, which is built for real and trained whole.
        row: its row of BACKBONES, if it has one.
        r: rank of the adapter; rsLoRA scales it otherwise and is as large.
        targets, adapt_top, use_dora, expert_parameters, dense: as in `add_lora`.
        dtype, quantization: as in `load_embedder`.

    Raises:
        ValueError: an architecture that transformers does not build without code of the model's own, an adapter folder, a rank,
            target or number of layers that the model cannot have.

    Reference: Hu et al. (2021), LoRA, arXiv:2106.09685, section 4.1.

    Example:
        >>> from models.locate import base_folder
        >>> sizes = model_sizes(base_folder("tiny-llm"), r=4, targets=["q_proj"])
        >>> sizes.parameters, sizes.trainable, sizes.adapted
        (1099968, 5120, 5)
    """
    if folder is None:
        assert row is not None, "a model without a folder has a row"
        assert row.from_scratch, f"{row.name} has a folder"
        model = transformer_of(build_tiny_encoder())
        assert isinstance(model, PreTrainedModel), type(model)
        return _sizes(model, parts=0, trainable=_count(model), adapted=0)
    if r < 1:
        raise ValueError(f"--lora.r: expected a rank of at least 1, got {r}; 16 is usual")
    here = transformer_folder(folder)
    config, stored = _config(here)
    model = _on_meta(config, dtype or stored, None if row is None else row.attn_implementation)
    names = target_modules(model, targets=targets, adapt_top=adapt_top)
    stacks = target_parameters(model, expert_parameters, adapt_top=adapt_top)
    parts = _dense(folder)
    trained_dense = parts if dense == "train" else 0
    before = _sizes(
        model, parts=parts - trained_dense, trainable=0, adapted=len(names) + len(stacks), quantization=quantization
    )
    wanted = LoraConfig(r=r, target_modules=names, target_parameters=stacks or None, use_dora=use_dora, bias="none")
    experts = _experts(model, stacks)
    with quiet_loading(), torch.device("meta"):
        adapted = get_peft_model(model, wanted)
    # "auto" would ask the hub whether the vocabulary grew
    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    loaded = dtype or stored
    return replace(
        before,
        parameters=before.parameters + trained_dense,
        trainable=sum(each.numel() for each in state.values()) + trained_dense,
        trained_dense=trained_dense,
        stored_bytes=before.stored_bytes
        + before.parameters * (stored.itemsize - loaded.itemsize)
        + trained_dense * stored.itemsize,
        adapted_experts=sum(experts.values()),
        block_experts=max(experts.values(), default=0),
        dora_outputs=_dora_outputs(adapted) // before.blocks if use_dora else 0,
        header_bytes=_header_bytes(state),
    )


def transformer_folder(folder: Path) -> Path:
    """Where config.json and tokenizer of the first module are: the folder itself, or the one that modules.json names.

    Raises:
        ValueError: no config.json there, or an adapter folder.
    """
    modules = folder / "modules.json"
    if (folder / "adapter_config.json").is_file() and not modules.is_file():
        raise ValueError(
            f"model {folder}: expected a model without an adapter, got an adapter folder; give its base, or merge it first"
        )
    here = folder / read_json(modules)[0]["path"] if modules.is_file() else folder
    if not (here / "config.json").is_file():
        raise ValueError(f"model: expected config.json in {here}, found none; give a transformers model")
    return here


def _config(here: Path) -> tuple[PretrainedConfig, torch.dtype]:
    """What transformers, or the class of our own, reads of the folder, and the precision of its weights."""
    with native_folder(here) as native:
        if is_nomic_moe(read_json(native / "config.json")):
            own = read_nomic_config(native / "config.json")
            return own, _loaded_dtype(here, own)
        try:
            config = AutoConfig.from_pretrained(str(native), local_files_only=True, trust_remote_code=False)
        except ValueError as error:
            kind = read_json(here / "config.json").get("model_type")
            raise ValueError(
                f"{here / 'config.json'}: expected an architecture of transformers, got model_type {kind!r}, which needs code "
                "of the model's own; take a version of the model that transformers has"
            ) from error
    assert isinstance(config, PretrainedConfig), type(config)
    return config, _loaded_dtype(here, config)


def _on_meta(config: PretrainedConfig, dtype: torch.dtype, attention: str | None) -> PreTrainedModel:
    with quiet_loading(), torch.device("meta"):
        if isinstance(config, NomicMoeConfig):
            own = NomicMoeModel(config)
            nn.Module.to(own, dtype=dtype)
            return own
        model: PreTrainedModel = AutoModel.from_config(config, dtype=dtype, attn_implementation=attention)  # type: ignore[no-untyped-call]
        return model.get_encoder() if config.model_type in ENCODERS_OF_TWO else model


def _loaded_dtype(here: Path, config: PretrainedConfig) -> torch.dtype:
    """As ``dtype="auto"`` of transformers: the config's, else that of the first floating tensor of the files."""
    if isinstance(config.dtype, torch.dtype):
        return config.dtype
    for path in weight_files(here).values():
        for entry in read_header(path).entries.values():
            dtype = torch_dtypes()[entry.dtype]
            if dtype.is_floating_point:
                assert isinstance(dtype, torch.dtype)
                return dtype
    return torch.float32


def _sizes(
    model: PreTrainedModel, *, parts: int, trainable: int, adapted: int, quantization: Quantisation = "none"
) -> ModelSizes:
    config = model.config
    assert isinstance(config, PretrainedConfig), type(config)
    _, stack = block_stack(model)
    dtype = next(model.parameters()).dtype
    intermediate = int(getattr(config, "intermediate_size", 0) or 4 * config.hidden_size)
    linear = [(name, each) for name, each in stack[0].named_modules() if isinstance(each, nn.Linear)]
    eager = getattr(config, "_attn_implementation", None) == "eager"
    packed = {} if quantization == "none" else packed_layers(model)
    loaded = weight_bytes(model, packed, quantization) + parts * dtype.itemsize
    blocks = [weight_bytes(each, packed, quantization) for each in stack]
    whole = weight_bytes(model, {}, "none") + parts * dtype.itemsize
    parameters = sum(layer.get_parameter("weight").numel() for layer in packed.values())
    return ModelSizes(
        parameters=_count(model) + parts,
        trainable=trainable,
        adapted=adapted,
        stored_bytes=whole,
        weight_bytes=loaded,
        packed_bytes=loaded - (whole - parameters * dtype.itemsize),
        packed_parameters=parameters,
        block_bytes=max(blocks),
        outside_bytes=loaded - sum(blocks),
        dtype=dtype,
        blocks=len(stack),
        width=config.hidden_size,
        intermediate=intermediate,
        experts_a_token=int(getattr(config, "moe_top_k", 0) or getattr(config, "num_experts_per_tok", 0) or 1),
        header_bytes=_header_bytes(model.state_dict()),
        gated=any("gate" in name or each.out_features == 2 * intermediate for name, each in linear),
        eager_heads=config.num_attention_heads if eager else 0,
    )


def _experts(model: nn.Module, stacks: Sequence[str]) -> Mapping[str, int]:
    """Numbers of the named weights, by block."""
    place, _ = block_stack(model)
    shares: dict[str, int] = {}
    for name in stacks:
        block = name.removeprefix(f"{place}.").partition(".")[0]
        shares[block] = shares.get(block, 0) + model.get_parameter(name).numel()
    return shares


def _dora_outputs(adapted: PeftModel) -> int:
    return sum(each.numel() for name, each in adapted.named_parameters() if ".lora_magnitude_vector." in name)


def _count(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters())


def _header_bytes(state: Mapping[str, Tensor]) -> int:
    """Length of a safetensors header: 8 bytes, and names, shapes and offsets as JSON without spaces, to a multiple of 8."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, tensor in state.items():
        offsets = [begin, begin := begin + tensor.nbytes]
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": offsets}
    return 8 + -(-len(json.dumps(header, separators=(",", ":"))) // 8) * 8


def _dense(folder: Path) -> int:
    """Weights of the Dense modules that modules.json names."""
    if not (folder / "modules.json").is_file():
        return 0
    count = 0
    for module in read_json(folder / "modules.json"):
        if module["type"].endswith(".Dense"):
            told = read_json(folder / module["path"] / "config.json")
            count += told["in_features"] * told["out_features"] + (
                told["out_features"] if told.get("bias", True) else 0
            )
    return count
