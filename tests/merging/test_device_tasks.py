"""Merges of files by way of the device's windows: the same code without streams on the CPU, and on CUDA where there is one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merging import METHODS, merge_checkpoints, merge_state_dicts
from merging.device_tasks import merge_files_on_device, merge_held_on_device, suits_device
from merging.plan import plan_merge
from merging.report import summary_of
from merging.request import Request, settings_of
from merging.tensors import held_tasks
from storage.tensor_file import read_tensors, write_tensors
from tests.merging.conftest import perturbed

COEFFICIENTS = sorted(name for name, row in METHODS.items() if row.kind == "coefficients")


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"embed.weight": (900, 40), "layers.0.a.weight": (70, 40), "norm": (50,), "frozen": (8,)}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    made = []
    for index in range(4):
        folder = tmp_path / f"m{index}"
        folder.mkdir()
        tensors = perturbed(base, 0.1 * index, index) | {"frozen": base["frozen"], "scale": torch.tensor(2.0)}
        write_tensors(folder / "model.safetensors", tensors | {"ids": torch.arange(3)})
        (folder / "config.json").write_text("{}")
        made.append(folder)
    return made


def asked(method: str, folders: list[Path]) -> dict[str, Any]:
    row = METHODS[method]
    base = folders[0] if row.needs_base or method == "karcher" else None
    return {"inputs": folders[1 : 1 + (row.maximum or 3)], "base": base, "method": method}


@pytest.mark.parametrize("method", COEFFICIENTS)
def test_a_merge_of_files_by_windows_is_the_ordinary_merge(folders: list[Path], tmp_path: Path, method: str) -> None:
    given = asked(method, folders)
    merge_checkpoints(output=tmp_path / "plain", **given)
    expected = read_tensors(tmp_path / "plain" / "model.safetensors")
    plan = plan_merge(Request(**given, settings=settings_of(None, inputs=len(given["inputs"]))), tmp_path / "out")
    tasks = [task for task in plan.tasks if suits_device(task)]
    got = {task.name: torch.empty(task.elements, dtype=task.dtype) for task in tasks}
    pieces: list[int] = []

    def keep(task: Any, first: int, values: Tensor) -> None:
        got[task.name][first : first + values.numel()] = values

    outcomes = merge_files_on_device(tasks, keep, torch.device("cpu"), memory=200_000, after_piece=pieces.append)
    for task in tasks:
        torch.testing.assert_close(got[task.name].reshape(task.shape), expected[task.name], rtol=1e-6, atol=1e-7)
    assert sum(pieces) == sum(task.elements * 4 for task in tasks)
    assert [outcome.task.name for outcome in outcomes] == [task.name for task in tasks]
    assert {"scale", "ids"}.isdisjoint(got)
    assert summary_of(plan.rule, outcomes)["tensors"] == 4


@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic"])
def test_tensors_with_options_of_their_own_are_solved_by_them(method: str) -> None:
    generator = torch.Generator().manual_seed(1)
    models = [{f"layers.{i}.w": torch.randn(9, 7, generator=generator) for i in range(3)} for _ in range(3)]
    base = models[0] if method == "task_arithmetic" else None
    told: dict[str, Any] = {"scale": [0.2, 1.0]} if method == "task_arithmetic" else {"t": [0, 1]}
    settings = settings_of(None, inputs=2, **told)
    request = Request(inputs=["a", "b"], method=method, settings=settings)
    got = merge_held_on_device(held_tasks(request, models[1:], base))
    expected = merge_state_dicts(models[1:], method=method, base=base, **told)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-6, atol=1e-7)


@pytest.mark.gpu
@pytest.mark.parametrize("method", sorted(METHODS))
def test_on_cuda_the_merge_is_that_of_the_cpu(folders: list[Path], tmp_path: Path, method: str) -> None:
    given = asked(method, folders)
    merge_checkpoints(output=tmp_path / "cpu", **given)
    merge_checkpoints(output=tmp_path / "cuda", device="cuda", **given)
    one, two = (read_tensors(tmp_path / name / "model.safetensors") for name in ("cpu", "cuda"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-6, atol=1e-7)
