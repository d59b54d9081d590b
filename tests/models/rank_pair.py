"""Two gloo ranks in forked processes, for what several tests ask of many models at once."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.multiprocessing import start_processes

from storage.json_file import read_json, write_json

RANKS = 2
PATIENCE = datetime.timedelta(seconds=120)
Task = Callable[[int, DeviceMesh], dict[str, Any]]


def on_two_ranks(task: Task, work: Path) -> list[dict[str, Any]]:
    """What ``task(rank, mesh)`` finds on each of two ranks; an error on one of them is an error here."""
    start_processes(_rank, args=(task, work), nprocs=RANKS, start_method="fork")
    return [read_json(work / f"{rank}.json") for rank in range(RANKS)]


def _rank(rank: int, task: Task, work: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{work}/meeting", rank=rank, world_size=RANKS, timeout=PATIENCE)
    try:
        write_json(work / f"{rank}.json", task(rank, init_device_mesh("cpu", (RANKS,))))
    finally:
        dist.destroy_process_group()
