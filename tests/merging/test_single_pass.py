"""One pass over the files where coefficients are known in advance: the same values, and the same report, as two passes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merging import METHODS, merge_checkpoints
from merging.single_pass import is_known_in_advance
from storage.tensor_file import read_tensors, write_tensors

KNOWN = sorted(name for name, row in METHODS.items() if not row.needs_gram)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Tensors of several chunks, one that is frozen, one frozen in its first rows, minus zeros, 16 bits, integers."""
    generator = torch.Generator().manual_seed(0)
    frozen = torch.randn(700, 400, generator=generator)
    frozen[0, :5] = -0.0
    made = []
    for index in range(4):
        folder = tmp_path / f"m{index}"
        folder.mkdir()
        partly = frozen.clone()
        partly[690:] += index
        tensors: dict[str, Tensor] = {
            "embed": torch.randn(900, 400, generator=generator),
            "frozen": frozen,
            "half": torch.randn(33, 3, generator=generator).bfloat16(),
            "partly": partly,
            "scale": torch.tensor(1.0 + index),
            "ids": torch.arange(3),
            "empty": torch.zeros(0, 4),
        }
        write_tensors(folder / "model.safetensors", tensors)
        (folder / "config.json").write_text("{}")
        made.append(folder)
    return made


def both(folders: list[Path], out: Path, monkeypatch: pytest.MonkeyPatch, method: str, **asked: Any) -> None:
    row = METHODS[method]
    given = {"inputs": folders[1 : 1 + (row.maximum or 3)], "method": method, **asked}
    if row.needs_base:
        given["base"] = folders[0]
    one = merge_checkpoints(output=out / "one", **given)
    monkeypatch.setattr("merging.windows.is_known_in_advance", lambda task: False)
    two = merge_checkpoints(output=out / "two", **given)
    first, second = (read_tensors(out / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(first[name], second[name]) for name in first | second)
    if asked.get("granularity") != "row":  # two passes have coefficients for every row and no room for them
        assert one == two


@pytest.mark.parametrize("method", KNOWN)
def test_one_pass_gives_the_values_and_the_report_of_two(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    assert set(KNOWN) == {"linear", "passthrough", "task_arithmetic"}
    both(folders, tmp_path, monkeypatch, method)


@pytest.mark.parametrize("granularity", ["row", "layer", "model"])
def test_so_it_does_at_every_granularity_and_in_either_space(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, granularity: str
) -> None:
    both(folders, tmp_path, monkeypatch, "linear", granularity=granularity, base=folders[0], weights=[1, 2, 3])


def test_values_that_are_not_finite_are_refused_and_nothing_is_left(folders: list[Path], tmp_path: Path) -> None:
    tensors = read_tensors(folders[1] / "model.safetensors")
    tensors["embed"][899, 7] = float("nan")
    from safetensors.torch import save_file

    save_file(tensors, folders[1] / "model.safetensors")
    with pytest.raises(ValueError, match="tensor embed: expected finite values, got 1 "):
        merge_checkpoints(folders[1:3], tmp_path / "out", method="linear")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m0", "m1", "m2", "m3"]


def test_float64_takes_two_passes(folders: list[Path]) -> None:
    from merging.request import Request, settings_of
    from merging.tensors import held_tasks

    request = Request(inputs=["a", "b"], method="linear", settings=settings_of(None, inputs=2))
    pair = [
        {"wide": torch.ones(2).double(), "w": torch.ones(2)},
        {"wide": torch.zeros(2).double(), "w": torch.zeros(2)},
    ]
    assert {task.name: is_known_in_advance(task) for task in held_tasks(request, pair, None)} == {
        "wide": False,
        "w": True,
    }
