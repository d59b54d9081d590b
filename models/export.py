"""Saving what training made: adapter folders that plain PEFT loads, and whole sentence-transformers folders.

Every folder is whole or absent, ends with a manifest, and is read again and compared before it gets its name.

Dimension names: n texts, d length of an embedding.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, TaskType
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import AutoModel

from models.adapter import (
    ADAPTER_FILE,
    adapter_state,
    attach_adapter,
    find_adapter,
    load_adapter_weights,
    split_state,
    transformer_of,
)
from models.attention import config_of
from models.card import CARD
from models.carrying import adapter_obstacle
from models.dense import DENSE_FILE
from models.embedder import encode, load_embedder
from models.locate import hub_origin
from models.quantised import Quantisation, keep_differentiable
from models.quiet import quiet_loading
from storage.atomic import building_folder, write_text
from storage.json_file import read_json, write_json
from storage.manifest import MANIFEST, fingerprint, write_manifest
from storage.tensor_file import read_tensors, write_tensors

__all__ = [
    "adapter_state",
    "attach_adapter",
    "check_adapter_roundtrip",
    "load_adapter_weights",
    "save_adapter",
    "save_embedder",
]


def save_adapter(
    embedder: SentenceTransformer,
    folder: str | Path,
    *,
    base_name: str,
    base_folder: str | Path,
    revision: str | None = None,
    extra_manifest: Mapping[str, Any] | None = None,
    json_files: Mapping[str, Any] | None = None,
    card: str | None = None,
    bidirectional: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write the embedder's adapter as a folder that ``PeftModel.from_pretrained`` loads.

    Dense weights that were trained beside it lie in a file of their own, which `load_embedder` reads. The base is
    recorded so that it can be found again: hub id and commit for a hub snapshot, the absolute folder otherwise; the
    manifest adds the fingerprint of its weights, whether its causal mask was removed, and whether plain PEFT gives
    this model (``base.plain_peft``): where it does not, `load_embedder` does.

    Args:
        embedder: with an adapter from `add_lora`.
        folder: where to; it must not exist unless `overwrite`.
        base_name: what the user called the base (a name of BACKBONES, a path, a hub id).
        base_folder: the local folder of the base's weights, from ``models.base_folder``.
        revision: commit of the hub repository; None reads it from the snapshot's folder name.
        extra_manifest: further entries of manifest.json, such as the stage and its seed.
        json_files: further files by name, such as ``{"metrics.json": {...}}``, covered by the manifest.
        card: text of README.md, see `models.card.embedder_card`.
        bidirectional: whether the base was loaded without its causal mask because it was asked for.
        overwrite: replace an existing folder, in one step.

    Returns:
        The folder.

    Raises:
        ValueError: no adapter, NaN in it, or a folder that exists.
    """
    model = find_adapter(embedder)
    if model is None:
        raise ValueError(f"{folder}: expected an embedder with an adapter, got none; use save_embedder for all weights")
    base = Path(base_folder).resolve()
    origin = hub_origin(base)
    config = copy.deepcopy(model.peft_config[model.active_adapter])
    config.base_model_name_or_path = str(base) if origin is None else origin[0]
    config.revision = None if origin is None else revision or origin[1]
    config.task_type = TaskType.FEATURE_EXTRACTION
    config.inference_mode = True
    state, dense = split_state(adapter_state(embedder))
    obstacle = adapter_obstacle(base, bidirectional=bidirectional)
    if dense:
        obstacle = "the Dense modules were trained too, which a PEFT adapter does not hold"
    recorded = {
        "name": base_name,
        "path": str(base),
        "revision": config.revision,
        "fingerprint": fingerprint(base),
        "bidirectional": bidirectional,
        "plain_peft": {"loads": True} if obstacle is None else {"loads": False, "reason": obstacle},
    }
    with building_folder(folder, overwrite=overwrite) as building:
        write_tensors(building / ADAPTER_FILE, state, metadata={"format": "pt"})
        if dense:
            write_tensors(building / DENSE_FILE, dense, metadata={"format": "pt"})
            _check_equal(read_tensors(building / DENSE_FILE), dense, source=str(folder))
        config.save_pretrained(str(building))
        _sort_targets(building / "adapter_config.json")
        for name, content in (json_files or {}).items():
            write_json(building / name, content)
        if card is not None:
            write_text(building / CARD, card)
        _check_equal(read_tensors(building / ADAPTER_FILE), state, source=str(folder))
        write_manifest(building, base=recorded, **(extra_manifest or {}))
    return Path(folder)


def check_adapter_roundtrip(
    folder: str | Path, embedder: SentenceTransformer, texts: Sequence[str], *, tolerance: float = 1e-5
) -> float:
    """Load the adapter folder the way a user would, and compare embeddings.

    That is with plain transformers and PEFT, or, where the manifest says that these cannot give the model, with
    `load_embedder`.

    Args:
        folder: written by `save_adapter` from this embedder.
        embedder: the model in memory; afterwards as before.
        texts: a few texts.
        tolerance: largest difference of an element that passes.

    Returns:
        The largest difference found.

    Raises:
        ValueError: the adapter changes nothing (all lora_B zero), a key of the file matches nothing or is missing,
            or the embeddings differ by more than `tolerance`.
    """
    stored = read_tensors(Path(folder) / ADAPTER_FILE)
    if not any(bool(tensor.any()) for name, tensor in stored.items() if ".lora_B." in name):
        raise ValueError(
            f"adapter {folder}: expected an adapter that changes the base, got one whose lora_B are all zero; "
            "train it for at least one step with a learning rate above 0"
        )
    base = read_json(Path(folder) / MANIFEST)["base"]
    expected = encode(embedder, texts)
    plain = base.get("plain_peft", {"loads": True})["loads"]
    found = (
        _loaded_by_peft(Path(folder), embedder, texts, stored)
        if plain
        else _loaded_by_us(Path(folder), embedder, texts)
    )
    difference = (found - expected).abs().max().item()
    if not difference <= tolerance:
        way = "PEFT" if plain else "load_embedder"
        raise ValueError(
            f"adapter {folder}: expected embeddings within {tolerance:g} of the trained model's after loading it with "
            f"{way}, got a difference of {difference:.3g}; the base at {base['path']} is not the one it was trained on"
        )
    return difference


def _loaded_by_peft(
    folder: Path, embedder: SentenceTransformer, texts: Sequence[str], stored: Mapping[str, Tensor]
) -> Tensor:
    """Embeddings with plain transformers and PEFT in the embedder's place, a quantised base quantised alike."""
    trained = transformer_of(embedder)
    quantised = getattr(config_of(embedder), "quantization_config", None)
    # sentence-transformers takes the encoder alone of a T5, of which AutoModel is both halves.
    kind = type(trained.get_base_model() if isinstance(trained, PeftModel) else trained)
    plain: Any = kind if kind.__name__.endswith("EncoderModel") else AutoModel
    with quiet_loading():
        fresh = plain.from_pretrained(
            read_json(folder / MANIFEST)["base"]["path"],
            dtype=_base_dtype(trained),
            local_files_only=True,
            use_safetensors=True,
            **({} if quantised is None else {"quantization_config": quantised}),
        )
        keep_differentiable(fresh)  # as the trained one; the other kernel for 4 bits rounds otherwise
        loaded = PeftModel.from_pretrained(fresh.to(embedder.device), str(folder))
    try:
        embedder[0].model = loaded
        factors, _ = split_state(adapter_state(embedder))
        _check_equal(factors, stored, source=f"adapter {folder}, loaded by PEFT")
        return encode(embedder, texts)
    finally:
        embedder[0].model = trained


def _loaded_by_us(folder: Path, embedder: SentenceTransformer, texts: Sequence[str]) -> Tensor:
    base = Path(read_json(folder / MANIFEST)["base"]["path"])
    again = load_embedder(
        folder,
        device=embedder.device,
        dtype=_base_dtype(transformer_of(embedder)),
        cache=None if hub_origin(base) is None else base.parents[2],  # CACHE/models--owner--name/snapshots/COMMIT
        offline=True,
        quantization=_quantisation_of(embedder),
    )
    _check_equal(adapter_state(again), adapter_state(embedder), source=f"adapter {folder}")
    return encode(again, texts)


def _quantisation_of(embedder: SentenceTransformer) -> Quantisation:
    """How the base was quantised while it was loaded."""
    said = getattr(config_of(embedder), "quantization_config", None)
    if said is None:
        return "none"
    if said.load_in_8bit:
        return "int8"
    return "fp4" if said.bnb_4bit_quant_type == "fp4" else "nf4"


def save_embedder(
    embedder: SentenceTransformer,
    folder: str | Path,
    *,
    extra_manifest: Mapping[str, Any] | None = None,
    json_files: Mapping[str, Any] | None = None,
    card: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a whole embedder (no adapter) as a folder that plain ``SentenceTransformer(folder)`` loads.

    Raises:
        ValueError: the embedder carries an adapter, a weight is not finite, or the folder exists.
    """
    if find_adapter(embedder) is not None:
        raise ValueError(f"{folder}: expected an embedder without an adapter, got one; use save_adapter")
    state = adapter_state(embedder)
    if broken := [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]:
        raise ValueError(f"{folder}: expected finite weights, got NaN or infinity in {broken[0]}; nothing was written")
    with building_folder(folder, overwrite=overwrite) as building:
        with quiet_loading():
            embedder.save_pretrained(str(building), create_model_card=False)
            again = SentenceTransformer(str(building), device="cpu", local_files_only=True)
        _check_equal(adapter_state(again), state, source=str(folder))
        for name, content in (json_files or {}).items():
            write_json(building / name, content)
        if card is not None:
            write_text(building / CARD, card)
        write_manifest(building, **(extra_manifest or {}))
    return Path(folder)


def _sort_targets(path: Path) -> None:
    """Give the targets a fixed order: PEFT writes a set, whose order changes from process to process."""
    config = read_json(path)
    write_json(path, {**config, "target_modules": sorted(config["target_modules"])})


def _base_dtype(model: nn.Module) -> torch.dtype:
    """Precision of the base's own weights; the adapter's factors are float32 over any base."""
    return next(
        each.dtype for name, each in model.named_parameters() if ".lora_" not in name and each.is_floating_point()
    )


def _check_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, source: str) -> None:
    if found.keys() != expected.keys():
        odd = sorted(found.keys() ^ expected.keys())
        raise ValueError(
            f"{source}: expected the tensors that were saved, got a difference in {len(odd)}, first {odd[0]}"
        )
    for name, tensor in expected.items():
        if found[name].dtype != tensor.dtype or not torch.equal(found[name], tensor):
            raise ValueError(f"{source}: expected {name} as it was saved, got other values; write the folder again")
