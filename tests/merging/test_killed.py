"""A merge that is killed at any moment: the final name holds a complete, verified merge, or nothing."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from storage.manifest import verify_manifest
from storage.tensor_file import read_tensors, write_tensors

ROOT = Path(__file__).parents[2]
METHODS = ("linear", "karcher")
CODE = """
import sys
from merging import merge_checkpoints
print("ready", flush=True)
while True:
    for method in sys.argv[4:]:
        merge_checkpoints(sys.argv[1:3], sys.argv[3], method=method, overwrite=True)
"""


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    folders = []
    for seed in (1, 2):
        folder = tmp_path / f"m{seed}"
        folder.mkdir()
        generator = torch.Generator().manual_seed(seed)
        tensors = {f"layers.{i}.w": torch.randn(256, 512, generator=generator) for i in range(8)}
        write_tensors(folder / "model.safetensors", tensors)
        (folder / "config.json").write_text("{}")
        folders.append(folder)
    return folders


def kill_often(pair: list[Path], out: Path, times: int) -> int:
    """Kill a process that merges over and over, ``times`` times; returns how often the name held a merge."""
    expected = {}
    for method in METHODS:
        from merging import merge_checkpoints

        merge_checkpoints(pair, out.parent / method, method=method)
        expected[method] = read_tensors(out.parent / method / "model.safetensors")
    randomness = random.Random(0)
    complete = 0
    for _ in range(times):
        command = [sys.executable, "-c", CODE, *map(str, pair), str(out), *METHODS]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(randomness.uniform(0, 0.6))
            process.send_signal(signal.SIGKILL)
        if out.exists():
            verify_manifest(out)
            got = read_tensors(out / "model.safetensors")
            assert any(all(torch.equal(got[name], one[name]) for name in one) for one in expected.values())
            complete += 1
    return complete


def test_a_killed_merge_leaves_a_whole_one_or_none(pair: list[Path], tmp_path: Path) -> None:
    kill_often(pair, tmp_path / "out", 3)


@pytest.mark.slow
def test_fifty_killed_merges_leave_whole_ones_or_none(pair: list[Path], tmp_path: Path) -> None:
    assert kill_often(pair, tmp_path / "out", 50) > 10
