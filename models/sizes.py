"""model_sizes: what a model weighs, by its config.json alone: the transformer is built on the meta device, no weight is read.

training_memory: what training it holds on a device; the activations are an estimate, the rest is counted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig

from models.adapter import transformer_of
from models.backbones import Backbone
from models.lora import block_stack, target_modules
from models.native_config import native_folder
from models.quiet import quiet_loading
from models.tiny_encoder import build_tiny_encoder
from storage.json_file import read_json
from storage.manifest import weight_files
from storage.tensor_file import read_header, torch_dtypes

ENCODERS_OF_TWO = ("t5", "mt5", "umt5", "longt5")
"""Encoder-decoders of which sentence-transformers loads the encoder only."""
CAST_TO = {"64-true": 8, "bf16-true": 2, "16-true": 2}
"""Precisions that change the weights themselves, the adapter's included: bytes a number."""
KEPT_AS = {"32-true": 4, "bf16-mixed": 2, "16-mixed": 2}
"""Precisions that leave the weights as they are in the folder, and the adapter in float32: bytes of a product."""


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """Counts of one model, and the shape of its blocks."""

    parameters: int
    """Weights of the model without an adapter."""
    trainable: int
    """Weights that are trained: the adapter's, or all of a model that is trained from scratch."""
    adapted: int
    """Linear layers with an adapter; 0 when all weights are trained."""
    weight_bytes: int
    """Bytes of the weights and buffers as they are loaded."""
    dtype: torch.dtype
    """Precision of the weights as they are loaded."""
    blocks: int
    width: int
    intermediate: int
    gated: bool
    """Whether the blocks multiply two projections of the intermediate width."""
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
) -> ModelSizes:
    """Count a model and the LoRA adapter that `add_lora` would put on it, without reading weights.

    Besides the transformer, Dense modules are counted by their own config.json; other modules of sentence-transformers with
    weights (LSTM, CNN) are not.

    Args:
        folder: of a transformers or sentence-transformers model, from ``models.base_folder``; None for a `row` that is drawn
            from its seed, which is built for real and trained whole.
        row: its row of BACKBONES, if it has one.
        r: rank of the adapter.
        targets: as in `add_lora`.
        adapt_top: as in `add_lora`.

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
        return _sizes(model, parts=0, trainable=_count(model), adapted=0)
    if r < 1:
        raise ValueError(f"--lora.r: expected a rank of at least 1, got {r}; 16 is usual")
    here = transformer_folder(folder)
    config = _config(here)
    asked = None if row is None else row.attn_implementation
    with quiet_loading(), torch.device("meta"):
        model = AutoModel.from_config(  # type: ignore[no-untyped-call]
            config, dtype=_loaded_dtype(here, config), attn_implementation=asked
        )
        if config.model_type in ENCODERS_OF_TWO:
            model = model.get_encoder()
    names = target_modules(model, targets=targets, adapt_top=adapt_top)
    before = _sizes(model, parts=_dense(folder), trainable=0, adapted=len(names))
    with quiet_loading(), torch.device("meta"):
        adapted = get_peft_model(model, LoraConfig(r=r, target_modules=names, bias="none"))
    # "auto" would ask the hub whether the vocabulary grew
    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    trainable = sum(each.numel() for each in state.values())
    return replace(before, trainable=trainable, header_bytes=_header_bytes(state))


def training_memory(
    sizes: ModelSizes, *, texts: int, tokens: int, precision: str = "32-true", devices: int = 1
) -> dict[str, int]:
    """Bytes that a training step holds on one device: every device has the whole model (DDP).

    Counted: ``weights``; ``adapter`` (the trainable weights when these are an adapter's), ``gradients`` (as large), ``optimizer``
    (AdamW's two averages, 8 bytes a float32 weight), ``buckets`` (DDP's copy of the gradients, on more than one device).

    Estimated: ``activations``, what the backward pass needs of each block: texts x tokens x blocks x (10 width + 4 intermediate)
    numbers, 2 intermediate where the blocks have no gate, and 2 heads x tokens more where attention holds its scores. A number
    takes 4 bytes (LoRA reads float32 copies, also over a bfloat16 base), about 3 in mixed precision, 2 when all is cast; mixed
    precision over a float32 base also keeps a 2-byte copy of every weight for the backward pass.

    ``stage_end``: with an adapter, a second copy of the base is loaded to check the adapter that a stage has saved.
    ``peak`` is the larger of training and stage end. CUDA's context and allocator come on top.

    Args:
        sizes: from `model_sizes`.
        texts: of a batch, on one device.
        tokens: of the longest text.
        precision: Lightning's.
        devices: over which DDP trains.

    Raises:
        ValueError: a precision that is none of Lightning's for these weights.

    Reference: the counts of Korthikanti et al. (2022), arXiv:2205.05198, section 4.1, made again for LoRA on gated blocks.

    Example:
        >>> from models.backbones import find_backbone
        >>> sizes = model_sizes(None, row=find_backbone("tiny-encoder"))
        >>> training_memory(sizes, texts=48, tokens=64)["optimizer"] == 8 * sizes.trainable
        True
    """
    cast = CAST_TO.get(precision)
    if cast is None and precision not in KEPT_AS:
        known = ", ".join((*KEPT_AS, *CAST_TO))
        raise ValueError(f"--precision: expected one of {known}, got {precision!r}; 32-true is the default")
    number = cast or 4
    weights = sizes.weight_bytes if cast is None else sizes.parameters * cast
    whole = sizes.adapted == 0
    states = sizes.trainable * number
    mixed = precision.endswith("-mixed")
    values = 10 * sizes.width + (4 if sizes.gated else 2) * sizes.intermediate + 2 * sizes.eager_heads * tokens
    activations = texts * tokens * sizes.blocks * values * (3 if mixed else number)
    if mixed and sizes.dtype == torch.float32:
        activations += 2 * sizes.parameters
    counted = {
        "weights": weights,
        "adapter": 0 if whole else states,
        "gradients": states,
        "optimizer": 2 * states,
        "buckets": states if devices > 1 else 0,
    }
    held = sum(counted.values())
    stage_end = 0 if whole else held + weights
    return {**counted, "activations": activations, "stage_end": stage_end, "peak": max(held + activations, stage_end)}


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


def _config(here: Path) -> PretrainedConfig:
    with native_folder(here) as native:
        try:
            config = AutoConfig.from_pretrained(str(native), local_files_only=True, trust_remote_code=False)
        except ValueError as error:
            kind = read_json(here / "config.json").get("model_type")
            raise ValueError(
                f"{here / 'config.json'}: expected an architecture of transformers, got model_type {kind!r}, which needs code "
                "of the model's own; take a version of the model that transformers has"
            ) from error
    assert isinstance(config, PretrainedConfig), type(config)
    return config


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


def _sizes(model: nn.Module, *, parts: int, trainable: int, adapted: int) -> ModelSizes:
    config = model.config
    assert isinstance(config, PretrainedConfig), type(config)
    _, stack = block_stack(model)
    dtype = next(model.parameters()).dtype
    intermediate = int(getattr(config, "intermediate_size", 0) or 4 * config.hidden_size)
    linear = [(name, each) for name, each in stack[0].named_modules() if isinstance(each, nn.Linear)]
    eager = getattr(config, "_attn_implementation", None) == "eager"
    buffers = sum(each.nbytes for each in model.buffers())
    return ModelSizes(
        parameters=_count(model) + parts,
        trainable=trainable,
        adapted=adapted,
        weight_bytes=sum(each.nbytes for each in model.parameters()) + buffers + parts * dtype.itemsize,
        dtype=dtype,
        blocks=len(stack),
        width=config.hidden_size,
        intermediate=intermediate,
        header_bytes=_header_bytes(model.state_dict()),
        gated=any("gate" in name or each.out_features == 2 * intermediate for name, each in linear),
        eager_heads=config.num_attention_heads if eager else 0,
    )


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
