"""The prefix cache of a run: whether it has one, where its states lie, and how batches and merges come to them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from sentence_transformers import SentenceTransformer

from data.training_texts import Item
from lightning_app.batch import Batch
from lightning_app.config import TrainConfig
from lightning_app.preparation import Run
from lightning_app.presentation import announce
from models.prefix_cache import PrefixCache
from models.prefix_pass import describe_prefix, lowest_trained_block
from models.prefix_store import FileStore

PRECISIONS = {"32-true": None, "32": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""Lightning's precisions that leave the weights as they are, and what their passes compute in."""


def open_prefix(run: Run, folder: Path) -> PrefixCache | None:
    """Install the cache of ``--adapt-top`` on the run's embedder, its states in ``FOLDER/prefix``.

    Returns:
        None where there is none: without ``--adapt-top``, with ``--no-prefix-cache``, or for a reason that is announced.
    """
    config = run.config
    if config.adapt_top is None or not config.prefix_cache or not run.adapts:
        return None
    layer = lowest_trained_block(run.embedder)
    if layer == 0:
        return None
    if (obstacle := _obstacle(config)) is not None:
        announce(f"prefix cache: not used, {obstacle}")
        return None
    cache = _opened(run, run.embedder, layer, folder)
    if cache is not None and isinstance(cache.store, FileStore):
        blocks = "block" if layer == 1 else f"{layer} blocks"
        announce(
            f"prefix cache: states above the lowest {blocks} are kept in {cache.store.folder}{_found(cache.store)}"
        )
    return cache


def share_prefix(run: Run, merged: SentenceTransformer, folder: Path) -> PrefixCache | None:
    """Let a merge of the run begin where its stages do: on the same states if it has the same weights below them."""
    if run.prefix is None:
        return None
    return _opened(run, merged.to(run.device), run.prefix.layer, folder)


def autocast_of(config: TrainConfig) -> torch.dtype | None:
    """What training computes in where it is not the precision of the weights."""
    return PRECISIONS.get(config.precision)


def with_states(
    collate: Callable[[Sequence[Item]], Batch], cache: PrefixCache | None, *, autocast: torch.dtype | None
) -> Callable[[Sequence[Item]], Batch]:
    """A ``collate`` whose batches bring their states along, so that a step reads nothing back from its device.

    A text that is met for the first time is computed by the step itself, whose rank keeps it for all. Without a cache it is
    ``collate`` itself.
    """
    if cache is None:
        return collate

    def collated(items: Sequence[Item]) -> Batch:
        batch = collate(items)
        for part in batch.parts:
            cache.attach(part, autocast=autocast)
        return batch

    return collated


def _opened(run: Run, embedder: SentenceTransformer, layer: int, folder: Path) -> PrefixCache | None:
    rank: Any = getattr(rank_zero_only, "rank", 0)
    store = FileStore(folder / "prefix", describe_prefix(embedder, layer), rank=rank)
    cache = PrefixCache(embedder, layer, store, say=announce)
    try:
        cache.prove(run.data.stages[0].data.texts[:3])
    except ValueError as error:
        announce(f"prefix cache: not used, {error}")
        return None
    cache.install()
    return cache


def _obstacle(config: TrainConfig) -> str | None:
    if config.strategy == "fsdp" and config.ranks > 1:
        return "with --strategy fsdp every device holds a part of each block only"
    if config.batching == "packed":
        return "texts are packed"
    if config.precision not in PRECISIONS:
        return f"--precision {config.precision} changes the weights for training"
    return None


def _found(store: FileStore) -> str:
    return f" ({len(store)} texts, {store.size / 2**20:.1f} MiB)" if len(store) else ""
