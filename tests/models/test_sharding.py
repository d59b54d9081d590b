"""Sharded embedders of every architecture: the weights, embeddings and gradients of one process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from models import backbones, meta_loading, sharding
from models.checkpointing import checkpoint_blocks
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
        assert off is not False
        assert off < (0.01 if name == HALF else 1e-5)


def _every_way(
    cache: Path, scratch: SentenceTransformer, again: SentenceTransformer, rank: int, mesh: DeviceMesh
) -> dict[str, Any]:
    """What else trains: lengths of rows, Dense modules, all weights, and blocks that compute their states again."""
    with tiny_rows():
        dora, dense = (load_embedder(name, cache=cache, offline=True) for name in ("me5-large", "embeddinggemma"))
    add_lora(dora, r=3, targets=["query"], use_dora=True)
    add_lora(dense, r=3, targets=["q_proj"], dense="train")
    add_lora(again, r=3, targets=["q_proj"])
    checkpoint_blocks(again)
    again.train()
    found = {}
    for name, whole in {"dora": dora, "dense": dense, "scratch": scratch, "again": again}.items():
        found[name] = _compare(whole, sharding.sharded_copy(whole, mesh, reshard_after_forward=name != "dora"), rank)
    return found


def test_every_way_of_training(cache: Path, tmp_path: Path) -> None:
    scratch, again = load_embedder("tiny-encoder").requires_grad_(True), load_embedder("tiny-llm")
    for each in on_two_ranks(partial(_every_way, cache, scratch, again), tmp_path):
        for name, result in each.items():
            off = result.pop("gradients")
            assert result == {"names and precisions": True, "different": [], "embeddings": True}, name
            assert off is not False, name
            assert off < 1e-5, name


class Spied(WeightFiles):
    """Notes the bytes of everything that is read of the files."""

    read: ClassVar[list[tuple[str, int]]] = []

    def rows(self, name: str, rows: slice) -> Tensor:
        return self._note(name, super().rows(name, rows))

    def whole(self, name: str) -> Tensor:
        return self._note(name, super().whole(name))

    def _note(self, name: str, tensor: Tensor) -> Tensor:
        Spied.read.append((name, tensor.nbytes))
        return tensor


def _what_is_read(cache: Path, rank: int, mesh: DeviceMesh) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch, tiny_rows():
        patch.setattr(meta_loading, "WeightFiles", Spied)
        for name in ("e5-mistral", "gte-large", "nomic-moe"):
            Spied.read = []
            load_sharded(name, mesh, cache=cache, offline=True)
            found[name] = Spied.read
    return found


def test_a_rank_reads_its_half_and_whole_tensors_only_where_they_are_fused(cache: Path, tmp_path: Path) -> None:
    ranks = on_two_ranks(partial(_what_is_read, cache), tmp_path)
    for name in ranks[0]:
        entries = WeightFiles(_folder(cache, name)).entries
        sizes = {each: entry.bytes for each, entry in entries.items()}
        for rank in ranks:
            read = dict(rank[name])
            assert len(read) == len(rank[name]), "a tensor was read twice"
            assert read.keys() == sizes.keys()
            fused = {each for each in sizes if "qkv_proj" in each or "up_gate_proj" in each}
            for each, size in sizes.items():
                row = size // entries[each].shape[0]
                assert read[each] == size if each in fused else abs(read[each] - size / 2) <= row / 2, each
        assert bool(fused) == (name == "gte-large")


class Largest(TorchDispatchMode):
    """The largest memory that one tensor on the CPU has, whoever makes it; a file that is mapped takes none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.mapped = 0, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, list | tuple) else [made]:
            if type(each) in (Tensor, nn.Parameter) and each.device.type == "cpu":
                memory = each.untyped_storage()
                if func is torch.ops.aten.set_.source_Storage:
                    self.mapped.add(memory.data_ptr())
                if memory.data_ptr() not in self.mapped:
                    self.bytes = max(self.bytes, memory.nbytes())
        return made


def _largest_memory(cache: Path, rank: int, mesh: DeviceMesh) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("e5-mistral", "gte-large", "nomic-moe"):
        with tiny_rows(), pytest.MonkeyPatch.context() as patch:
            # What comes afterwards gathers a block at a time, as training does.
            patch.setattr(meta_loading, "first_pass", lambda embedder: None)
            patch.setattr(meta_loading, "check_attention", lambda *_, **__: None)
            patch.setattr(meta_loading.FSDPModule, "unshard", lambda module: None)
            with Largest() as one_by_one:
                load_sharded(name, mesh, adapt=partial(_adapt, name), cache=cache, offline=True)
            with Largest() as at_once:
                load_embedder(name, cache=cache, offline=True)
            found[name] = [one_by_one.bytes, at_once.bytes]
    return found


def test_no_memory_is_larger_than_half_a_weight_or_a_fused_one(cache: Path, tmp_path: Path) -> None:
    for rank in on_two_ranks(partial(_largest_memory, cache), tmp_path):
        for name, (one_by_one, at_once) in rank.items():
            files = WeightFiles(_folder(cache, name))
            parts = [
                entry.bytes if "qkv_proj" in each or "up_gate_proj" in each else entry.bytes * -(-rows // 2) / rows
                for each, entry in files.entries.items()
                for rows in entry.shape[:1]
            ]
            assert one_by_one <= max(parts), name
            assert at_once > max(parts), name


def _folder(cache: Path, name: str) -> Path:
    repository = backbones.BACKBONES[name].repo_id
    assert repository is not None
    (folder,) = (cache / f"models--{repository.replace('/', '--')}" / "snapshots").iterdir()
    return folder


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    """Of one rank, in this process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_what_cannot_be_read_or_spread_is_refused(mesh: DeviceMesh, tiny_folder: Path, tmp_path: Path) -> None:
    file = tiny_folder / "model.safetensors"
    tensors = load_file(file)
    first = next(name for name in tensors if "q_proj" in name)
    broken = {
        "missing, first": {name: each for name, each in tensors.items() if name != first},
        "expected shape": {**tensors, first: tensors[first][:3].clone()},
        "expected finite weights": {**tensors, first: tensors[first] * float("nan")},
    }
    for number, (message, content) in enumerate(broken.items()):
        folder = tmp_path / f"{number}"
        shutil.copytree(tiny_folder, folder, ignore=shutil.ignore_patterns("manifest.json"))
        save_file(content, folder / file.name, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=f"{folder}.*{message}"):
            load_sharded(folder, mesh)
    with pytest.raises(ValueError, match="expected LoRA without DoRA"):
        load_sharded(tiny_folder, mesh, adapt=partial(add_lora, r=2, use_dora=True))
    with pytest.raises(ValueError, match="drawn from its seed"):
        load_sharded("tiny-encoder", mesh)
    embedder = load_sharded(tiny_folder, mesh)
    with pytest.raises(ValueError, match="spread already"):
        sharding.shard_blocks(embedder, mesh)
    whole = load_embedder(tiny_folder)
    add_lora(whole, r=2).to(torch.bfloat16)
    next(each for name, each in whole.named_parameters() if "lora_A" in name).data = torch.zeros(2, 16)
    with pytest.raises(ValueError, match="--strategy fsdp: expected trainable weights of one precision"):
        sharding.shard_blocks(whole, mesh)
    whole = load_embedder(tiny_folder)
    nn.Module.register_parameter(whole[0].model, "few", nn.Parameter(torch.zeros(2, dtype=torch.uint8), False))
    with pytest.raises(ValueError, match=r"--strategy fsdp: expected a base in full precision, got torch.uint8"):
        sharding.shard_blocks(whole, mesh)
