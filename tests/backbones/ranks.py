"""DDP and FSDP2 on two gloo processes: every model in one pair of them, its gradients against one process's.

Dimension names: n texts, d length of an embedding.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.multiprocessing import start_processes

from models.sharding import shard_blocks
from storage.json_file import read_json, write_json
from tests.backbones.hub_model import TEXTS, HubModel

RANKS = 2
COLUMNS = ("DDP", "FSDP2")
PATIENCE = datetime.timedelta(seconds=120)


def results(hubs: Sequence[HubModel], work: Path) -> dict[str, dict[str, str]]:
    """For each model and each of COLUMNS: ``yes`` when both ranks agree with one process, else what was found."""
    for hub in hubs:
        assert hub.folder.is_dir()
    start_processes(_rank, args=(list(hubs), work), nprocs=RANKS, start_method="fork")
    found = [read_json(work / f"{rank}.json") for rank in range(RANKS)]
    return {
        hub.name: {column: max((each[hub.name][column] for each in found), key="yes".__ne__) for column in COLUMNS}
        for hub in hubs
    }


def _rank(rank: int, hubs: list[HubModel], work: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{work}/meeting", rank=rank, world_size=RANKS, timeout=PATIENCE)
    try:
        write_json(
            work / f"{rank}.json",
            {hub.name: {column: _tried(hub, column, rank) for column in COLUMNS} for hub in hubs},
        )
    finally:
        dist.destroy_process_group()


def _tried(hub: HubModel, column: str, rank: int) -> str:
    """What fails on one rank fails on the other, so that neither is left waiting."""
    try:
        expected = _gradients(_start(hub), range(len(TEXTS)))
        sharded = {"DDP": _replicated, "FSDP2": _sharded}[column](_start(hub))
        found = _gradients(sharded, range(rank, len(TEXTS), RANKS))
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    if found.keys() != expected.keys():
        return f"gradients at {len(found)} weights, {len(expected)} in one process"
    largest = max(each.abs().max() for each in expected.values())
    difference = max((found[name] - expected[name]).abs().max() for name in expected)
    return "yes" if largest > 1e-4 and difference < 1e-5 * max(1, largest) else f"gradients off by {difference:.2g}"


def _start(hub: HubModel) -> SentenceTransformer:
    """With an adapter that is no identity, so that both of its factors get a gradient."""
    embedder = hub.adapted()
    torch.manual_seed(7)
    for name, weight in sorted(embedder.named_parameters()):
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    return embedder


def _replicated(embedder: SentenceTransformer) -> nn.Module:
    return nn.parallel.DistributedDataParallel(embedder)


def _sharded(embedder: SentenceTransformer) -> nn.Module:
    shard_blocks(embedder, init_device_mesh("cpu", (RANKS,)))
    return embedder


def _gradients(model: nn.Module, rows: Sequence[int]) -> dict[str, Tensor]:
    """Of a mean over the texts: the mean over two ranks' halves is the mean over all."""
    embedder = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    assert isinstance(embedder, SentenceTransformer)
    embeddings = model(embedder.preprocess([TEXTS[row] for row in rows]))["sentence_embedding"]
    wanted = torch.randn(len(TEXTS), embeddings.shape[1], generator=torch.Generator().manual_seed(11))
    (embeddings * wanted[list(rows)]).sum(dim=1).mean().backward()
    grads = {name: weight.grad for name, weight in embedder.named_parameters() if weight.grad is not None}
    return {name: grad.full_tensor() if isinstance(grad, DTensor) else grad for name, grad in grads.items()}
