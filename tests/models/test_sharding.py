"""Sharded embedders of every architecture: the weights, embeddings and gradients of one process."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from models import backbones, sharding
from models.embedder import encode, load_embedder
from models.lora import add_lora
from models.meta_loading import load_sharded
from models.weight_files import WeightFiles
from tests.models.hub_folders import NAMES, tiny_rows, write_hub_folder
from tests.models.rank_pair import RANKS, on_two_ranks

TEXTS = ["1, 2, 3", "2, 4, 8, 16, 32", "7, 8", "3, 9, 27, 81"]
HALF = "gte-qwen2-1.5b"
"""The model whose base is in bfloat16 here."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    for name in NAMES:
        write_hub_folder(folder, name)
    return folder


def _adapt(name: str, embedder: SentenceTransformer) -> None:
    row = backbones.BACKBONES[name]
    add_lora(embedder, r=3, alpha=8, targets=row.lora_targets, expert_parameters=row.expert_parameters)


def _whole(name: str, cache: Path) -> SentenceTransformer:
    dtype = torch.bfloat16 if name == HALF else None
    embedder = load_embedder(name, cache=cache, offline=True, dtype=dtype)
    _adapt(name, embedder)
    return embedder


def _gradients(embedder: SentenceTransformer, rows: range) -> dict[str, Tensor]:
    """Of a mean over the texts: the mean over two ranks' halves is the mean over all."""
    torch.manual_seed(7)
    for each, weight in sorted(embedder.named_parameters()):
        if "lora_B" in each:
            drawn = 0.1 * torch.randn(weight.shape)
            sharding.load_wholes({each: weight}, {each: drawn})
    embeddings = embedder(embedder.preprocess([TEXTS[row] for row in rows]))["sentence_embedding"].float()
    wanted = torch.randn(len(TEXTS), embeddings.shape[1], generator=torch.Generator().manual_seed(11))
    (embeddings * wanted[list(rows)]).sum(dim=1).mean().backward()
    grads = {each: weight.grad for each, weight in embedder.named_parameters() if weight.grad is not None}
    return {each: grad.full_tensor() if isinstance(grad, DTensor) else grad for each, grad in grads.items()}


def _every_model(cache: Path, rank: int, mesh: DeviceMesh) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with tiny_rows():
        for name in NAMES:
            whole = _whole(name, cache)
            found[name] = {"copy": _compare(whole, sharding.sharded_copy(whole, mesh), rank)}
            whole.zero_grad()
            read = load_sharded(
                name,
                mesh,
                adapt=partial(_adapt, name),
                cache=cache,
                offline=True,
                dtype=torch.bfloat16 if name == HALF else None,
            )
            fresh = _whole(name, cache)
            found[name]["files"] = _compare(fresh, read, rank)
    return found


def _compare(whole: SentenceTransformer, spread: SentenceTransformer, rank: int) -> dict[str, Any]:
    """How far apart the two are; the rows of a rank by torch.chunk, which is what FSDP2 documents."""
    wholes, parts = dict(whole.named_parameters()), dict(spread.named_parameters())
    buffers, copies = dict(whole.named_buffers()), dict(spread.named_buffers())
    different = [each for each in wholes if not torch.equal(parts[each].to_local(), _chunk(wholes[each], rank))]
    different += [each for each in buffers if not torch.equal(copies[each], buffers[each])]
    names = sorted(wholes) == sorted(parts) and sorted(buffers) == sorted(copies)
    dtypes = all(parts[each].dtype == weight.dtype for each, weight in wholes.items())
    alike = torch.equal(encode(spread, TEXTS), encode(whole, TEXTS))
    expected, got = _gradients(whole, range(len(TEXTS))), _gradients(spread, range(rank, len(TEXTS), RANKS))
    largest = max(float(each.abs().max()) for each in expected.values())
    off = max(float((got[each] - expected[each]).abs().max()) for each in expected)
    return {
        "names and precisions": names and dtypes and expected.keys() == got.keys(),
        "different": different,
        "embeddings": alike,
        "gradients": largest > 1e-4 and off / max(1, largest),
    }


def _chunk(weight: Tensor, rank: int) -> Tensor:
    parts = weight.detach().chunk(RANKS)
    return parts[rank] if rank < len(parts) else weight.detach()[:0]


@pytest.fixture(scope="module")
def found(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_two_ranks(partial(_every_model, cache), tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("way", ["copy", "files"])
@pytest.mark.parametrize("name", NAMES)
def test_ranks_hold_their_rows_and_compute_what_one_process_does(
    name: str, way: str, found: list[dict[str, Any]]
) -> None:
    for each in found:
        result = dict(each[name][way])
        off = result.pop("gradients")
        assert result == {"names and precisions": True, "different": [], "embeddings": True}
        # A base in bfloat16 rounds every state; half a batch is padded to another length.
        assert off is not False and off < (0.05 if name == HALF else 1e-5)
