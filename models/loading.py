"""load_folder: the embedder in one local folder, by what the folder says and, where it is silent, by its row."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from models.adapter import transformer_of
from models.attention import CAUSAL_BY_DEFAULT, check_attention, config_of, remove_causal_mask
from models.backbones import Backbone
from models.empty_transformer import EmptyTransformer, as_loaded
from models.end_token import append_eos
from models.native_config import folder_with, native_folder
from models.nomic_transformer import NomicTransformer, as_transformer
from models.nomic_type import is_nomic_moe
from models.origin import row_by_code, transformer_folder
from models.proof import check_dimension, check_finite_weights, check_last_token, check_modules, check_tensors
from models.quantised import (
    Quantisation,
    bitsandbytes_config,
    check_quantised,
    keep_differentiable,
    refuse_quantised_files,
)
from models.quiet import quiet_casts, quiet_loading
from models.suitable import check_suitable
from storage.json_file import read_json

DeviceMap = str | dict[str, int | str]
MODULES = "sentence_transformers.sentence_transformer.modules"
OTHER_WEIGHTS = ("ignore_mismatched_sizes", "size mismatch")
"""In what transformers and torch raise for a tensor that has another shape than its place in the model."""


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What the user may ask of any model; each field is an argument of ``load_embedder``."""

    device: str | torch.device = "cpu"
    dtype: torch.dtype | None = None
    quantization: Quantisation = "none"
    bidirectional: bool = False
    device_map: DeviceMap | None = None
    runs_code: bool = False
    """Whether the folder's own code is run; the user's word and its commit were checked before."""
    weights: bool = True
    """False for shapes without values, which `load_sharded` then reads; what only values can prove is not proved."""


def load_folder(folder: Path, row: Backbone | None, options: LoadOptions) -> SentenceTransformer:
    """Load an embedder from a folder with weights, and prove that it is what the folder and the row say.

    Args:
        folder: local, with safetensors.
        row: of BACKBONES, when the model was found by its name or hub id; the folder then has to agree with it. The
            row of a folder that only names the row's code fills what the folder leaves out.
        options: precision, place and attention.

    Raises:
        ValueError: as ``load_embedder``.
    """
    file = transformer_folder(folder) / "config.json"
    settings = read_json(file) if file.is_file() else {}
    check_suitable(folder, settings, row, dtype=options.dtype, quantization=options.quantization)
    refuse_quantised_files(settings, source=str(file))
    guide = row or row_by_code(folder)
    with quiet_loading(), native_folder(folder) as native, _with_modules(native, guide, options, folder) as view:
        with _told_of(folder, view):
            embedder = _load_view(view, settings, guide, options)
        if not isinstance(getattr(embedder[0], "model", None), torch.nn.Module):
            raise ValueError(
                f"{folder}: expected a transformer as the first module (modules.json), got "
                f"{type(embedder[0]).__name__}; choose a model with one"
            )
        if view != folder:
            config_of(embedder)._name_or_path = str(folder)
    if options.quantization != "none":
        keep_differentiable(embedder)
    if options.bidirectional:
        _remove_mask(embedder, source=str(folder))
    if guide is not None:
        _follow_row(embedder, guide)
    if reads_last_token(embedder) and (_asks_for(folder, "eos") or (guide is not None and guide.needs_eos)):
        append_eos(embedder.tokenizer, source=str(folder), begins=_asks_for(folder, "bos"))
    embedder.eval()
    _prove(embedder, folder, row, guide, options)
    return embedder


@contextmanager
def _told_of(folder: Path, view: Path) -> Iterator[None]:
    """What libraries raise for files that they cannot follow, as one error that names the folder and not its view."""
    try:
        yield
    except ValueError as error:
        if str(folder) in str(error):
            raise
        raise ValueError(f"{folder}: {str(error).replace(str(view), str(folder))}") from error
    except (OSError, ImportError, KeyError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in OTHER_WEIGHTS):
            raise
        if isinstance(error, RuntimeError):
            got = "tensors of other shapes in its weights"
        else:
            got = f"{type(error).__name__}: {str(error).replace(str(view), str(folder))}"
        raise ValueError(
            f"{folder}: expected files of one model that its config.json describes, got {got}; fetch the folder again"
        ) from error


def _load_view(view: Path, settings: dict[str, Any], row: Backbone | None, options: LoadOptions) -> SentenceTransformer:
    model_kwargs: dict[str, Any] = {"dtype": options.dtype or "auto", "use_safetensors": True}
    if row is not None and row.attn_implementation is not None:
        model_kwargs["attn_implementation"] = row.attn_implementation
    device: str | None = str(options.device)
    if options.device_map is not None:
        model_kwargs["device_map"], device = options.device_map, None
    if options.quantization != "none":
        if options.quantization == "int8":
            quiet_casts()
        compute = options.dtype or _stored_dtype(settings)
        model_kwargs["quantization_config"] = bitsandbytes_config(options.quantization, compute_dtype=compute)
        model_kwargs["device_map"] = options.device_map or {"": str(options.device)}
        device = None
    asked: dict[str, Any] = {"device": device, "model_kwargs": model_kwargs, "local_files_only": True}
    if options.runs_code:
        return SentenceTransformer(str(view), **asked, trust_remote_code=True)
    if not options.weights:
        kind = read_json(view / "modules.json")[0]["type"]
        embedder = SentenceTransformer._load_with_module_classes(str(view), {kind: EmptyTransformer}, **asked)
        module = embedder[0]
        assert isinstance(module, EmptyTransformer), type(module)
        as_loaded(module)
        return embedder
    if not is_nomic_moe(settings):
        return SentenceTransformer(str(view), **asked)
    if options.quantization != "none" or options.device_map is not None:
        raise ValueError(
            f"{settings['model_type']} with a mixture of experts: expected full precision on one device, got "
            "quantization or --device-map; its experts are parameters and no linear layers, and it is small: use --device"
        )
    kind = read_json(view / "modules.json")[0]["type"]
    embedder = SentenceTransformer._load_with_module_classes(str(view), {kind: NomicTransformer}, **asked)
    module = embedder[0]
    assert isinstance(module, NomicTransformer), type(module)
    as_transformer(module)
    return embedder


@contextmanager
def _with_modules(folder: Path, row: Backbone | None, options: LoadOptions, source: Path) -> Iterator[Path]:
    """The folder, or one of links with the modules.json that it lacks; sentence-transformers would guess the pooling."""
    if (folder / "modules.json").is_file():
        yield folder
        return
    pooling = {"pooling_mode": "mean", "include_prompt": True}
    kinds = ["Transformer", "Pooling"]
    settings = read_json(folder / "config.json")
    if row is not None:
        pooling = {"pooling_mode": row.pooling, "include_prompt": row.pools_prompt}
        kinds += ["Normalize"] if row.normalize else []
    elif _is_causal(settings) and not options.bidirectional:
        way = ", or remove its mask (--bidirectional: mean)" if settings["model_type"] in CAUSAL_BY_DEFAULT else ""
        raise ValueError(
            f"{source}: expected modules.json, which says how a causal decoder pools its states, found none; give the "
            f"backbone by its name{',' if way else ' or'} save it with sentence-transformers{way}"
        )
    else:
        warnings.warn(
            f"{source} has no modules.json and no row of BACKBONES: mean pooling without normalisation is assumed",
            stacklevel=6,
        )
    pooling["embedding_dimension"] = _width(settings, source)
    modules = [
        {"idx": at, "name": str(at), "path": f"{at}_{kind}" if at else "", "type": f"{MODULES}.{kind}"}
        for at, kind in enumerate(kinds)
    ]
    with folder_with(
        folder, {"modules.json": modules, "1_Pooling/config.json": pooling}, code=options.runs_code
    ) as view:
        yield view


def _is_causal(settings: dict[str, Any]) -> bool:
    """Whether the model type is a decoder's that keeps its mask: transformers has it for generation, not for filling gaps."""
    kind = settings.get("model_type")
    if kind in CAUSAL_BY_DEFAULT:
        return bool(settings.get("is_causal", True))
    generates = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return generates and not settings.get("use_bidirectional_attention")


def _width(settings: dict[str, Any], source: Path) -> int:
    """Length of a state; model types have their own names for it (``n_embd``, ``d_model``, ``dim``)."""
    kind = settings.get("model_type", "")
    name = CONFIG_MAPPING[kind].attribute_map.get("hidden_size", "hidden_size") if kind in CONFIG_MAPPING else ""
    found = settings.get("hidden_size") or settings.get(name) or settings.get("n_embd")
    if not isinstance(found, int):
        raise ValueError(
            f"{source}: expected modules.json or hidden_size in config.json, which say how long an embedding is, found "
            "neither; save the model with sentence-transformers"
        )
    return found


def stored_dtype(folder: Path) -> str:
    """Precision of a folder's weights, as its config.json names it; float32 where it does not say.

    Example:
        >>> from models.locate import base_folder
        >>> stored_dtype(base_folder("tiny-llm"))
        'float32'
    """
    file = transformer_folder(folder) / "config.json"
    return str(_stored_dtype(read_json(file) if file.is_file() else {})).removeprefix("torch.")


def _stored_dtype(settings: dict[str, Any]) -> torch.dtype:
    """Precision of the weights by config.json; float32 where it does not say."""
    dtype = getattr(torch, str(settings.get("dtype") or settings.get("torch_dtype") or "float32"), torch.float32)
    assert isinstance(dtype, torch.dtype), settings
    return dtype


def _remove_mask(embedder: SentenceTransformer, *, source: str) -> None:
    kind = config_of(embedder).model_type
    if kind not in CAUSAL_BY_DEFAULT:
        raise ValueError(
            f"--bidirectional: expected a decoder with a causal mask ({', '.join(CAUSAL_BY_DEFAULT)}), got {kind} from "
            f"{source}; leave the option out"
        )
    remove_causal_mask(embedder)


def _follow_row(embedder: SentenceTransformer, row: Backbone) -> None:
    """What the folder of a backbone leaves out: the mask it was trained without, the padding side, fixed prompts."""
    if row.attention == "bidirectional":
        remove_causal_mask(embedder)
    embedder.tokenizer.padding_side = row.padding_side
    for name, prompt in row.prompts.items():
        # A prompt with a place for a task is a text of the user's making.
        if "{task}" not in prompt and not embedder.prompts.get(name):
            embedder.prompts[name] = prompt


def _prove(
    embedder: SentenceTransformer, folder: Path, row: Backbone | None, guide: Backbone | None, options: LoadOptions
) -> None:
    """Refuse what is not what its folder and its row say; every message names the folder."""
    if options.weights:
        check_tensors(embedder, folder, strict=row is not None)
        check_finite_weights(embedder, source=str(folder))
    if options.quantization != "none":
        check_quantised(transformer_of(embedder), source=str(folder))
    if row is not None:
        check_modules(embedder, row, source=str(folder))
        check_dimension(embedder, row, source=str(folder))
        check_last_token(embedder, row, source=str(folder))
    if options.weights and (guide is not None or options.bidirectional):
        check_attention(embedder, guide, source=str(folder), bidirectional=options.bidirectional)


def reads_last_token(embedder: SentenceTransformer) -> bool:
    """Whether the embedding is the state at the last token, so that the tokenizer must end every text."""
    return any(isinstance(module, Pooling) and "lasttoken" in module.pooling_mode for module in embedder)


def _asks_for(folder: Path, token: Literal["bos", "eos"]) -> bool:
    """Whether the tokenizer's settings ask for a begin or end token; transformers 5 does not act on these settings."""
    settings = folder / "tokenizer_config.json"
    return settings.is_file() and bool(read_json(settings).get(f"add_{token}_token", False))
