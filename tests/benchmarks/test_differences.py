"""Differences of merges, against slow loops over neighbours of bfloat16."""

import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.differences import largest_relative, last_places


def folder(root: Path, name: str, tensors: dict[str, Tensor]) -> Path:
    (root / name).mkdir(exist_ok=True)
    save_file(tensors, root / name / "model.safetensors")
    return root / name


def spacing(number: float) -> float:
    """The distance from a bfloat16 to the next one away from zero: the next pattern of bits."""
    (bits,) = struct.unpack(">H", struct.pack(">f", abs(number))[:2])
    (following,) = struct.unpack(">f", struct.pack(">H", bits + 1) + b"\0\0")
    return following - abs(number)


NUMBERS = st.floats(min_value=2.0**-100, max_value=2.0**100).map(lambda x: float(torch.tensor(x).bfloat16()))
SIGNED = st.tuples(NUMBERS, st.sampled_from((1.0, -1.0))).map(lambda pair: pair[0] * pair[1])


@given(st.lists(st.tuples(SIGNED, SIGNED, SIGNED), min_size=1, max_size=6))
def test_units_of_the_last_place(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, ...]]) -> None:
    root = tmp_path_factory.mktemp("differences")
    columns = zip(*rows, strict=True)
    ours, peers, given = (
        folder(root, name, {"x": torch.tensor(column).bfloat16()})
        for name, column in zip(("a", "b", "c"), columns, strict=True)
    )
    found = last_places(ours, peers, [given])
    pairs = [(abs(a - b), spacing(max(abs(a), abs(b))), spacing(max(map(abs, (a, b, c))))) for a, b, c in rows]
    assert found.of_result == pytest.approx(max(d / unit for d, unit, _ in pairs))
    assert found.of_inputs == pytest.approx(max(d / unit for d, _, unit in pairs))
    assert found.share == sum(d != 0 for d, _, _ in pairs) / len(rows)


def test_tensors_longer_than_a_piece_are_compared_to_their_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.differences.ROWS_AT_ONCE", 4)
    one = torch.ones(11, 3, dtype=torch.bfloat16)
    other = one.clone()
    other[10, 2] = 1 + 3 * 2.0**-7
    found = last_places(folder(tmp_path, "a", {"x": one}), folder(tmp_path, "b", {"x": other}), [])
    assert (found.of_result, found.share) == (3.0, 1 / 33)


def test_the_largest_relative_difference_names_its_tensor(tmp_path: Path) -> None:
    ours = {"near": torch.full((4,), 1.0001), "far": torch.tensor([3.0, 4.5]), "none": torch.zeros(2)}
    peers = {"near": torch.ones(4), "far": torch.tensor([3.0, 4.0]), "none": torch.zeros(2)}
    a, b = folder(tmp_path, "a", ours), folder(tmp_path, "b", peers)
    assert largest_relative(a / "model.safetensors", b / "model.safetensors") == (pytest.approx(0.1), "far")
    folder(tmp_path, "a", {**ours, "none": torch.tensor([3.0, 4.0])})
    assert largest_relative(a / "model.safetensors", b / "model.safetensors") == (5.0, "none")


@pytest.mark.parametrize("other", [{"y": torch.ones(2)}, {"x": torch.ones(3)}, {"x": torch.ones(2).half()}])
def test_other_tensors_are_refused(tmp_path: Path, other: dict[str, Tensor]) -> None:
    a, b = folder(tmp_path, "a", {"x": torch.ones(2)}), folder(tmp_path, "b", other)
    with pytest.raises(ValueError, match="expected the tensors of .*, got others: "):
        largest_relative(a / "model.safetensors", b / "model.safetensors")
