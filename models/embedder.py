"""load_embedder: any embedder as a sentence-transformers model, with its own pooling, prompts and precision.

Dimension names: n texts, d length of an embedding.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from torch import Tensor

from models.adapter import ADAPTER_FILE, attach_adapter
from models.attention import check_attention, config_of, remove_causal_mask
from models.backbones import Backbone, lookup_backbone
from models.end_token import append_eos
from models.locate import UnreachableModel, base_folder, hub_origin
from models.native_config import native_folder
from models.proof import check_finite_weights, check_last_token, check_modules, check_tensors
from models.quiet import quiet_loading
from models.tiny_encoder import build_tiny_encoder
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
) -> SentenceTransformer:
    """Load an embedder with its native pooling and prompts; no code of the model's own is ever run.

    Args:
        name_or_path: a name of BACKBONES, a sentence-transformers or transformers folder, an adapter folder (its
            base is loaded first), or a hub id.
        device: where to put it, for example ``"cuda"``.
        dtype: precision of the weights; None keeps the folder's.
        revision: branch, tag or commit of a hub model; a local model ignores it with a warning.
        cache: the hub's cache folder.
        offline: read the cache only.
        seed: draws the weights of a model that is trained from scratch (tiny-encoder); others ignore it.

    Returns:
        A SentenceTransformer in evaluation mode. It is an ``nn.Module``: ``model(features)["sentence_embedding"]``.

    Raises:
        ValueError: unknown name, unusable folder, an adapter of another base; a tensor that is missing or not
            finite; a folder whose attention, pooling or end token is not what its row of BACKBONES says.
        UnreachableModel: a hub model that is neither cached nor reachable, within seconds.

    Example:
        >>> load_embedder("tiny-encoder").encode(["1, 2, 3"]).shape
        (1, 128)
    """
    row = lookup_backbone(str(name_or_path))
    if row is not None and row.from_scratch:
        return build_tiny_encoder(seed=seed).to(device=device, dtype=dtype).eval()
    folder = base_folder(name_or_path, revision=revision, cache=cache, offline=offline)
    if revision is not None and hub_origin(folder) is None:
        warnings.warn(f"revision {revision!r} is ignored: {folder} is a local folder", stacklevel=2)
    if (folder / "adapter_config.json").is_file() and not (folder / "modules.json").is_file():
        return _load_stage(folder, device=device, dtype=dtype, cache=cache, offline=offline)
    return _load_folder(folder, row, device=device, dtype=dtype)


def _load_folder(
    folder: Path, row: Backbone | None, *, device: str | torch.device, dtype: torch.dtype | None
) -> SentenceTransformer:
    model_kwargs: dict[str, object] = {"dtype": dtype if dtype is not None else "auto", "use_safetensors": True}
    if row is not None and row.attn_implementation is not None:
        model_kwargs["attn_implementation"] = row.attn_implementation
    with quiet_loading(), native_folder(folder) as native:
        if row is not None and not (folder / "modules.json").is_file():
            # Without modules.json sentence-transformers would guess the pooling; the row knows it.
            transformer = Transformer(str(native), model_kwargs={**model_kwargs, "local_files_only": True})
            pooling = Pooling(transformer.get_embedding_dimension(), row.pooling, include_prompt=row.pools_prompt)
            modules = [transformer, pooling, *([Normalize()] if row.normalize else [])]
            embedder = SentenceTransformer(modules=modules, device=str(device))
        else:
            embedder = SentenceTransformer(
                str(native), device=str(device), model_kwargs=model_kwargs, local_files_only=True
            )
    if native != folder:
        config_of(embedder)._name_or_path = str(folder)
    if row is not None:
        _follow_row(embedder, row)
    if reads_last_token(embedder) and (_asks_for(folder, "eos") or (row is not None and row.needs_eos)):
        append_eos(embedder.tokenizer, source=str(folder), begins=_asks_for(folder, "bos"))
    embedder.eval()
    _prove(embedder, folder, row)
    return embedder


def _follow_row(embedder: SentenceTransformer, row: Backbone) -> None:
    """What the folder of a backbone leaves out: the mask it was trained without, the padding side, fixed prompts."""
    if row.attention == "bidirectional":
        remove_causal_mask(embedder)
    embedder.tokenizer.padding_side = row.padding_side
    for name, prompt in row.prompts.items():
        # A prompt with a place for a task is a text of the user's making.
        if "{task}" not in prompt and not embedder.prompts.get(name):
            embedder.prompts[name] = prompt


def _prove(embedder: SentenceTransformer, folder: Path, row: Backbone | None) -> None:
    """Refuse what is not what its folder and its row say; every message names the folder."""
    check_tensors(embedder, folder, strict=row is not None)
    check_finite_weights(embedder, source=str(folder))
    if row is not None:
        check_modules(embedder, row, source=str(folder))
        check_last_token(embedder, row, source=str(folder))
        check_attention(embedder, row, source=str(folder))


def _load_stage(
    folder: Path, *, device: str | torch.device, dtype: torch.dtype | None, cache: str | Path | None, offline: bool
) -> SentenceTransformer:
    """The base that an adapter folder names, and the adapter on it; the base's weights must be the recorded ones."""
    recorded = _recorded_base(folder) if (folder / MANIFEST).is_file() else {}
    config = read_json(folder / "adapter_config.json")
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not base:
        raise ValueError(
            f"adapter {folder}: expected base_model_name_or_path in adapter_config.json, found none; "
            "write the folder or hub id of its base there"
        )
    row = lookup_backbone(str(recorded.get("name") or base))
    if row is not None and row.builtin is not None:
        # By name, so that a run folder survives a move of the project; the fingerprint tells whether it is the same.
        base = row.name
    base_path = base_folder(base, revision=revision, cache=cache, offline=offline)
    if (wanted := recorded.get("fingerprint")) is not None and (found := fingerprint(base_path)) != wanted:
        raise ValueError(
            f"adapter {folder}: expected the base it was trained on (fingerprint {wanted[:12]}), got {base_path} with "
            f"{found[:12]}; restore that base or train the adapter again"
        )
    embedder = _load_folder(base_path, row, device=device, dtype=dtype)
    attach_adapter(embedder, folder)
    return embedder.eval()


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


def reads_last_token(embedder: SentenceTransformer) -> bool:
    """Whether the embedding is the state at the last token, so that the tokenizer must end every text."""
    return any(isinstance(module, Pooling) and "lasttoken" in module.pooling_mode for module in embedder)


def _asks_for(folder: Path, token: Literal["bos", "eos"]) -> bool:
    """Whether the tokenizer's settings ask for a begin or end token; transformers 5 does not act on these settings."""
    settings = folder / "tokenizer_config.json"
    return settings.is_file() and bool(read_json(settings).get(f"add_{token}_token", False))


def count_tokens(embedder: SentenceTransformer, texts: Sequence[str], *, prompt: str | None = None) -> list[int]:
    """Tokens of each text as the model would read it, special tokens and prompt included, nothing cut.

    Args:
        embedder: its tokenizer counts.
        texts: any number of texts.
        prompt: what is put before each text; None for the embedder's default prompt.

    Example:
        >>> count_tokens(load_embedder("tiny-encoder"), ["1, 2, 3", "10, 20, 30"])
        [6, 9]
    """
    if not texts:
        return []
    if prompt is None:
        prompt = embedder.prompts.get(embedder.default_prompt_name or "") or ""
    ids = embedder.tokenizer([prompt + text for text in texts], truncation=False, verbose=False)["input_ids"]
    return [len(each) for each in ids]


def check_lengths(
    embedder: SentenceTransformer, texts: Sequence[str], *, source: str = "texts", prompt: str | None = None
) -> None:
    """Refuse texts that the model would silently cut.

    Args:
        embedder: its tokenizer counts (special tokens and prompt included), its ``max_seq_length`` is the limit.
        texts: what will be encoded.
        source: where they come from, for the message: a file or a suite.
        prompt: what is put before each text; None for the embedder's default prompt.

    Raises:
        ValueError: names the longest text by its position from 0, its tokens and the limit.
    """
    limit = embedder.max_seq_length
    if limit is None or not texts:
        return
    lengths = count_tokens(embedder, texts, prompt=prompt)
    longest = max(range(len(texts)), key=lengths.__getitem__)
    if lengths[longest] > limit:
        raise ValueError(
            f"{source}: expected texts of at most {limit} tokens (what the model reads), got {lengths[longest]} in "
            f"text {longest} ({texts[longest][:40]!r}...); shorten it or choose a model that reads more"
        )


def encode(
    embedder: SentenceTransformer, texts: Sequence[str], *, batch_size: int = 32, prompt: str | None = None
) -> Float[Tensor, "n d"]:
    """Embed texts with the embedder's own ``encode``: float32 on the CPU, in the order given, without a gradient.

    Args:
        embedder: left in the mode it was in (dropout is off meanwhile).
        texts: each within the model's length; see `check_lengths`.
        batch_size: texts a forward pass.
        prompt: put before each text; None for the embedder's default prompt, ``""`` for none.

    Raises:
        ValueError: a text longer than the model reads.

    Example:
        >>> encode(load_embedder("tiny-encoder"), ["1, 2, 3", "2, 4, 6"]).shape
        torch.Size([2, 128])
    """
    check_lengths(embedder, texts, prompt=prompt)
    if not texts:
        return torch.empty(0, embedder.get_embedding_dimension() or 0)
    with modes_kept(embedder):
        embeddings = embedder.encode(
            list(texts), batch_size=batch_size, prompt=prompt, convert_to_tensor=True, show_progress_bar=False
        )
    return embeddings.detach().float().cpu()


@contextmanager
def modes_kept(module: torch.nn.Module) -> Iterator[None]:
    """Put every submodule back into training or evaluation mode as it was before the block."""
    before = [(each, each.training) for each in module.modules()]
    try:
        yield
    finally:
        for each, training in before:
            each.training = training
