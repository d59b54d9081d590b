"""load_embedder: any embedder as a sentence-transformers model, with its own pooling, prompts and precision."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from models.adapter import ADAPTER_FILE, attach_adapter
from models.backbones import Backbone, lookup_backbone
from models.encoding import check_lengths, count_tokens, encode, modes_kept
from models.loading import DeviceMap, LoadOptions, load_folder, reads_last_token
from models.locate import UnreachableModel, base_folder, hub_origin
from models.origin import row_by_hub_id
from models.proof import check_finite_weights
from models.quantised import Quantisation
from models.remote_code import allow_remote_code
from models.revision import split_revision
from models.tiny_encoder import build_tiny_encoder
from models.truncation import truncate
from storage.hashing import sha256_of
from storage.json_file import read_json
from storage.manifest import MANIFEST, fingerprint

__all__ = [
    "UnreachableModel",
    "base_folder",
    "check_finite_weights",
    "check_lengths",
    "count_tokens",
    "encode",
    "load_embedder",
    "modes_kept",
    "reads_last_token",
]


def load_embedder(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    cache: str | Path | None = None,
    offline: bool = False,
    seed: int = 0,
    quantization: Quantisation = "none",
    bidirectional: bool = False,
    device_map: DeviceMap | None = None,
    truncate_dim: int | None = None,
    trust_remote_code: bool = False,
    pickled_weights: bool = False,
) -> SentenceTransformer:
    """Load an embedder with its native pooling and prompts; no code of the model's own is run unless it is asked for.

    A folder without modules.json says nothing of its pooling: its row of BACKBONES does, found by its name, its hub
    id or the code that its config.json names; without a row an encoder is mean-pooled, with a warning, and so is a
    decoder with `bidirectional`; a causal decoder is refused.

    Args:
        name_or_path: a name of BACKBONES, a sentence-transformers or transformers folder, an adapter folder (its
            base is loaded first), or a hub id; a name and a hub id may be followed by ``@REVISION``.
        device: where to put it, for example ``"cuda"``; `device_map` goes before it.
        dtype: precision of the weights; None keeps the folder's.
        revision: branch, tag or commit of a hub model; a local model ignores it with a warning.
        cache: the hub's cache folder.
        offline: read the cache only.
        seed: draws the weights of a model that is trained from scratch (tiny-encoder); others ignore it.
        quantization: the linear layers in few bits, by bitsandbytes: nf4, fp4 or int8.
        bidirectional: remove the causal mask of a decoder that was trained with one.
        device_map: spread the model over devices (``"auto"``), for inference only.
        truncate_dim: keep this many first components of an embedding, of unit length if the whole one has it.
        trust_remote_code: run the folder's own code where nothing else has the model's class; a hub model needs a
            revision of 40 hexadecimal digits.
        pickled_weights: convert weights that exist as pickles only, without running what a pickle may run.

    Returns:
        A SentenceTransformer in evaluation mode. It is an ``nn.Module``: ``model(features)["sentence_embedding"]``.

    Raises:
        ValueError: unknown name, unusable folder, an adapter of another base; a tensor that is missing or not
            finite; a folder whose attention, pooling, dimension or end token is not what its row of BACKBONES says;
            an option that this model cannot have.
        UnreachableModel: a hub model that is neither cached nor reachable, within seconds.

    Example:
        >>> load_embedder("tiny-encoder").encode(["1, 2, 3"]).shape
        (1, 128)
    """
    options = LoadOptions(
        device=device, dtype=dtype, quantization=quantization, bidirectional=bidirectional, device_map=device_map
    )
    name, revision = split_revision(str(name_or_path), revision)
    row = lookup_backbone(name)
    if row is not None and row.from_scratch:
        if quantization != "none" or bidirectional or device_map is not None:
            raise ValueError(
                f"backbone {row.name}: expected a small encoder that is trained from scratch as it is, got "
                "quantization, --bidirectional or --device-map; leave them out"
            )
        embedder = build_tiny_encoder(seed=seed).to(device=device, dtype=dtype).eval()
    else:
        folder = base_folder(
            name,
            revision=revision,
            cache=cache,
            offline=offline,
            pickled_weights=pickled_weights,
            code=trust_remote_code,
        )
        if revision is not None and hub_origin(folder) is None:
            warnings.warn(f"revision {revision!r} is ignored: {folder} is a local folder", stacklevel=2)
        if (folder / "adapter_config.json").is_file() and not (folder / "modules.json").is_file():
            where = {"cache": cache, "offline": offline, "pickled_weights": pickled_weights, "code": trust_remote_code}
            embedder = _load_stage(folder, options, **where)
        else:
            row = row or row_by_hub_id(folder)
            fixed = _fixed_commit(name, revision, row)
            runs_code = allow_remote_code(folder, trusted=trust_remote_code, revision=fixed)
            embedder = load_folder(folder, row, replace(options, runs_code=runs_code))
    if truncate_dim is not None:
        truncate(embedder, truncate_dim, source=str(name_or_path))
    return embedder


def _load_stage(folder: Path, options: LoadOptions, **where: Any) -> SentenceTransformer:
    """The base that an adapter folder names, and the adapter on it; the base's weights must be the recorded ones."""
    recorded = _recorded_base(folder) if (folder / MANIFEST).is_file() else {}
    config = read_json(folder / "adapter_config.json")
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not base:
        raise ValueError(
            f"adapter {folder}: expected base_model_name_or_path in adapter_config.json, found none; "
            "write the folder or hub id of its base there"
        )
    named = split_revision(str(recorded.get("name") or ""))[0]
    row = lookup_backbone(named) or lookup_backbone(str(base))
    if row is not None and row.builtin is not None:
        # By name, so that a run folder survives a move of the project; the fingerprint tells whether it is the same.
        base = row.name
    base_path = base_folder(base, revision=revision, **where)
    if (wanted := recorded.get("fingerprint")) is not None and (found := fingerprint(base_path)) != wanted:
        raise ValueError(
            f"adapter {folder}: expected the base it was trained on (fingerprint {wanted[:12]}), got {base_path} with "
            f"{found[:12]}; restore that base or train the adapter again"
        )
    row = row or row_by_hub_id(base_path)
    fixed = _fixed_commit(base, revision, row)
    runs_code = allow_remote_code(base_path, trusted=where["code"], revision=fixed)
    removed = options.bidirectional or bool(recorded.get("bidirectional"))
    embedder = load_folder(base_path, row, replace(options, runs_code=runs_code, bidirectional=removed))
    attach_adapter(embedder, folder)
    return embedder.eval()


def _fixed_commit(given: str, revision: str | None, row: Backbone | None) -> str | None:
    """The revision that the user named, by itself or in a snapshot's path, or else the one of the row."""
    snapshot = hub_origin(Path(given).expanduser().absolute())
    if snapshot is not None:
        return snapshot[1]
    return revision or (row.revision if row is not None else None)


def _recorded_base(folder: Path) -> dict[str, Any]:
    """What the manifest says of the base, after comparing the adapter's weights with their recorded hash."""
    manifest = read_json(folder / MANIFEST)
    wanted = manifest.get("files", {}).get(ADAPTER_FILE, {}).get("sha256")
    if wanted is not None and sha256_of(folder / ADAPTER_FILE) != wanted:
        raise ValueError(
            f"{folder / ADAPTER_FILE}: expected the content of {MANIFEST}, got another; restore the folder"
        )
    base: dict[str, Any] = manifest.get("base", {})
    return base
