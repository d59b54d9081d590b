"""The bytes of a step between two ranks, against what the kernel says that their sockets received."""

import os
import socket
import struct
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_gather
from torch.nn.parallel import DistributedDataParallel

from models.checkpointing import checkpoint_blocks
from models.embedder import load_embedder
from models.export import save_embedder
from models.lora import add_lora
from models.sharding import shard_blocks
from models.sizes import model_sizes
from models.tiny_llm import build_tiny_llm
from models.wire_bytes import wire_bytes
from tests.models.rank_pair import on_two_ranks

TEXTS = [f"{at}, {2 * at}, {3 * at}" for at in range(1, 9)]
RECEIVED = struct.Struct("Q")
AT = 128
"""Where tcp_info has ``tcpi_bytes_received``."""


def received() -> int:
    """Bytes of all TCP connections of this process so far."""
    total = 0
    for name in Path("/proc/self/fd").iterdir():
        try:
            if not str(name.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name.name))) as connection:
                if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM:
                    told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                    total += RECEIVED.unpack_from(told, AT)[0]
        except OSError:  # the folder's own descriptor is closed by now
            continue
    return total


def steps(folder, strategy, parts, blocks, rank, mesh):
    """Bytes that this rank received in each of three steps."""
    embedder = load_embedder(folder)
    add_lora(embedder, r=8, targets=["q_proj", "v_proj", "down_proj"])
    embedder.train()
    if blocks:
        checkpoint_blocks(embedder)
    if strategy == "fsdp":
        shard_blocks(embedder, mesh)
        model = embedder
    else:
        model = DistributedDataParallel(embedder)
    found = []
    for _ in range(3):
        dist.barrier()
        before = received()
        cut = [TEXTS[part::parts] for part in range(parts)]
        embeddings = torch.cat([model(dict(embedder.preprocess(each)))["sentence_embedding"] for each in cut])
        loss = torch.cat(list(all_gather(embeddings))).pow(2).sum()
        loss.backward()
        dist.barrier()
        found.append(received() - before)
    return {"received": found, "width": embeddings.shape[1]}


@pytest.fixture(scope="module")
def deep_folder(tmp_path_factory):
    """Eight layers: what is said of a step must not hang on the lowest one, which FSDP2 keeps from part to part."""
    folder = tmp_path_factory.mktemp("deep") / "model"
    return save_embedder(build_tiny_llm(hidden_size=64, layers=8, heads=2, intermediate_size=96, seed=1), folder)


@pytest.mark.parametrize(
    ("strategy", "parts", "blocks"), [("ddp", 1, False), ("fsdp", 1, False), ("fsdp", 1, True), ("fsdp", 3, False)]
)
def test_a_step_receives_what_was_counted(deep_folder, tmp_path, strategy, parts, blocks):
    sizes = model_sizes(deep_folder, r=8, targets=["q_proj", "v_proj", "down_proj"])
    told = wire_bytes(sizes, texts=len(TEXTS), devices=2, strategy=strategy, parts=parts)
    # gloo scatters what it has reduced by an all-reduce: twice the bytes that a ring needs
    expected = told["total"] + (told["gradients"] if strategy == "fsdp" else 0)
    for rank in on_two_ranks(partial(steps, deep_folder, strategy, parts, blocks), tmp_path):
        assert rank["width"] == sizes.width
        for each in rank["received"][1:]:
            least = 1.0 if parts == 1 else 0.85  # several parts: an upper bound
            assert least * expected < each < 1.1 * expected, f"{told}: {rank['received']}"


def test_ddp_sends_the_adapter_and_fsdp_the_base(deep_folder):
    sizes = model_sizes(deep_folder, r=8)
    ddp, fsdp = (wire_bytes(sizes, texts=4, devices=8, strategy=strategy) for strategy in ("ddp", "fsdp"))
    assert ddp["weights"] == 0
    assert ddp["gradients"] == 2 * 7 * 4 * sizes.trainable // 8
    assert fsdp["weights"] == 2 * 7 * (sizes.weight_bytes + 4 * sizes.trainable) // 8
    assert wire_bytes(sizes, texts=4, devices=8, strategy="fsdp", recomputed=True)["weights"] > fsdp["weights"]
    assert wire_bytes(sizes, texts=4, devices=1)["total"] == 0
