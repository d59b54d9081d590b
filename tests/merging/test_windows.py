"""Windows under a budget: bit-equal results whatever the budget and the threads, memory that does not grow."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from merging import METHODS, merge_checkpoints
from merging.windows import windows_of
from storage.tensor_file import read_tensors, write_tensors

ROOT = Path(__file__).parents[2]
ALL = sorted(METHODS)

DEFINED_BY_ORDER = (
    *("slerp", "nuslerp", "passthrough", "hierarchical_slerp", "sequential_slerp"),
    *(name for name in ALL if name.startswith(("dare", "della"))),
)
"""Methods of two ends or one model, the tree, and random masks, which belong to an input's place."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and three checkpoints with tensors of several chunks, and small ones."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"embed.weight": (900, 400), "layers.0.a.weight": (700, 400), "layers.1.b.weight": (3, 9), "norm": (50,)}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    made = []
    for index in range(4):
        noise = {name: 0.1 * index * torch.randn(x.shape, generator=generator) for name, x in base.items()}
        folder = tmp_path_factory.mktemp(f"m{index}")
        write_tensors(folder / "model.safetensors", {name: x + noise[name] for name, x in base.items()})
        (folder / "config.json").write_text("{}")
        made.append(folder)
    return made


def merged(folders: list[Path], output: Path, method: str, **asked: object) -> dict[str, Tensor]:
    row = METHODS[method]
    inputs = folders[1 : 1 + (row.maximum or 3)]
    base = folders[0] if row.needs_base else None
    extra = {"density": 0.3} if "density" in row.takes else {}
    merge_checkpoints(inputs, output, method=method, base=base, **extra, **asked)  # type: ignore[arg-type]
    return read_tensors(output / "model.safetensors")


@pytest.mark.parametrize("method", ALL)
def test_no_bit_depends_on_the_budget_or_the_number_of_threads(
    folders: list[Path], tmp_path: Path, method: str
) -> None:
    first = merged(folders, tmp_path / "a", method, threads=1)
    for name, asked in {"b": {"threads": 3}, "c": {"threads": 2, "memory": 1}, "d": {"memory": 2_500_000}}.items():
        other = merged(folders, tmp_path / name, method, **asked)
        assert all(torch.equal(other[key], first[key]) for key in first), (method, asked)


@pytest.mark.parametrize("method", ["linear", "karcher", "ties"])
def test_no_bit_depends_on_the_shards_that_are_written(folders: list[Path], tmp_path: Path, method: str) -> None:
    whole = merged(folders, tmp_path / "whole", method)
    base = folders[0] if METHODS[method].needs_base else None
    extra = {"density": 0.3} if method == "ties" else {}
    merge_checkpoints(folders[1:], tmp_path / "shards", method=method, base=base, shard_bytes=1_200_000, **extra)
    files = sorted((tmp_path / "shards").glob("model-*.safetensors"))
    assert len(files) == 2
    parts = {name: tensor for file in files for name, tensor in read_tensors(file).items()}
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


@pytest.mark.parametrize("method", [name for name in ALL if name not in DEFINED_BY_ORDER])
def test_the_order_of_the_inputs_changes_little(folders: list[Path], tmp_path: Path, method: str) -> None:
    one = merged(folders, tmp_path / "one", method)
    base, *others = folders
    two = merged([base, *others[::-1]], tmp_path / "two", method)
    for name in one:
        assert float((one[name] - two[name]).norm() / one[name].norm()) < 1e-6


def test_windows_hold_what_fits_and_a_large_tensor_stands_alone(folders: list[Path], tmp_path: Path) -> None:
    from merging.plan import plan_merge
    from merging.request import Request
    from merging.schedule import Settings

    plan = plan_merge(Request(inputs=folders[:2], method="linear", settings=Settings()), tmp_path / "out")
    sizes = [[task.name for task in window.tasks] for window in windows_of(plan.tasks, 2_300_000)]
    assert sizes == [["embed.weight"], ["layers.0.a.weight", "layers.1.b.weight", "norm"]]
    held = [window.bytes for window in windows_of(plan.tasks, 2_300_000)]
    assert held[0] == 0
    assert 0 < held[1] <= 2_300_000
    assert len(list(windows_of(plan.tasks, 10**9))) == 1
    assert math.prod(plan.tasks[0].shape) * 4 * 2 > 2_300_000


@pytest.mark.slow
def test_peak_memory_is_the_budget_and_a_constant_whatever_the_size(tmp_path: Path) -> None:
    """Three sizes, each in a process of its own; the budget is far below the inputs."""
    code = (
        "import sys; from pathlib import Path; from merging import merge_checkpoints;"
        "merge_checkpoints(sys.argv[1:3], sys.argv[3], method='slerp', memory=64 * 2**20);"
        # not ru_maxrss, which begins with the memory of the process that started this one
        "print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])"
    )
    for layers in (8, 32, 128):
        pair = []
        for seed in (1, 2):
            folder = tmp_path / f"{layers}-{seed}"
            folder.mkdir()
            generator = torch.Generator().manual_seed(seed)
            tensors = {f"layers.{i}.w": torch.randn(1024, 1024, generator=generator).bfloat16() for i in range(layers)}
            write_tensors(folder / "model.safetensors", tensors)
            (folder / "config.json").write_text("{}")
            pair.append(str(folder))
        command = [sys.executable, "-c", code, *pair, str(tmp_path / f"out-{layers}")]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        assert int(done.stdout) * 1024 <= 64 * 2**20 + 300 * 10**6, (layers, done.stdout)
