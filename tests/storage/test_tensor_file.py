import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from storage.tensor_file import Entry, TensorFileWriter, read_header, read_tensors, write_tensors

TENSORS = {
    "half": torch.arange(3, dtype=torch.float16),
    "wide": torch.arange(6, dtype=torch.float64).reshape(2, 3),
    "brain": torch.tensor([[1.5]], dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "empty": torch.zeros(0, 4),
    "mask": torch.tensor([True, False, True]),
}


def raw_file(path: Path, header: Any, data: bytes = b"", text: bytes | None = None) -> Path:
    encoded = json.dumps(header).encode() if text is None else text
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
    return path


def test_the_reference_implementation_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS, {"format": "pt"})
    for reader in (load_file, read_tensors):
        found = reader(path)
        assert found.keys() == TENSORS.keys()
        assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
        assert all(found[name].dtype == TENSORS[name].dtype for name in TENSORS)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_we_read_the_header_that_the_reference_implementation_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path, {"format": "pt"})
    header = read_header(path)
    assert header.metadata == {"format": "pt"}
    assert {name: entry.shape for name, entry in header.entries.items()} == {
        n: tuple(t.shape) for n, t in TENSORS.items()
    }
    wide = header.entries["wide"]
    values = torch.frombuffer(bytearray(path.read_bytes()[wide.begin : wide.end]), dtype=torch.float64)
    assert torch.equal(values.reshape(2, 3), TENSORS["wide"])


@given(st.lists(st.sampled_from(["U8", "BF16", "F32", "F64"]), max_size=6))
def test_every_tensor_starts_aligned_to_its_element(dtypes: list[str]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        entries = [Entry(str(index), dtype, (3,)) for index, dtype in enumerate(dtypes)]
        with TensorFileWriter(path, entries) as writer:
            for entry in entries:
                writer.write(entry.name, bytes(entry.bytes))
        for entry in read_header(path).entries.values():
            assert entry.begin % (entry.bytes // 3) == 0


def test_pieces_in_any_order_give_the_same_file(tmp_path: Path) -> None:
    entries = [Entry("a", "F32", (4,)), Entry("b", "F32", (2,))]
    data = torch.arange(4.0).numpy().tobytes()
    with TensorFileWriter(tmp_path / "a", entries) as writer:
        writer.write("b", bytes(8))
        writer.write("a", data[8:], offset=8)
        writer.write("a", data[:8])
    assert torch.equal(load_file(tmp_path / "a")["a"], torch.arange(4.0))


def test_an_unwritten_tensor_is_noticed(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="not written whole"),
        TensorFileWriter(tmp_path / "a", [Entry("a", "F32", (2,))]),
    ):
        pass


@pytest.mark.parametrize(("bad", "count"), [([1.0, math.nan, math.inf], 2), ([-math.inf], 1)])
def test_values_that_are_not_finite_are_refused_and_nothing_is_written(
    tmp_path: Path, bad: list[float], count: int
) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        with pytest.raises(ValueError, match=rf"a\.safetensors: tensor w: .* got {count} "):
            write_tensors(tmp_path / "a.safetensors", {"w": torch.tensor(bad, dtype=dtype)})
    assert list(tmp_path.iterdir()) == []


def test_large_float64_values_are_finite_and_views_are_written_as_seen(tmp_path: Path) -> None:
    tensors = {"large": torch.tensor([1e300], dtype=torch.float64), "view": torch.arange(6.0).reshape(2, 3).T}
    write_tensors(tmp_path / "a", tensors)
    assert torch.equal(load_file(tmp_path / "a")["view"], tensors["view"])


def test_the_file_has_ordinary_permissions(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_tensors(tmp_path / "a", {"w": torch.zeros(1)})
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated data": (lambda p: raw_file(p, {"w": GOOD}, bytes(7)), "truncated or padded"),
    "padded data": (lambda p: raw_file(p, {"w": GOOD}, bytes(9)), "truncated or padded"),
    "truncated header": (lambda p: p.write_bytes((100).to_bytes(8, "little") + b"{}"), "truncated"),
    "shorter than a length": (lambda p: p.write_bytes(b"abc"), "truncated"),
    "gap": (lambda p: raw_file(p, {"w": GOOD | {"data_offsets": [4, 12]}}, bytes(12)), "tensor w expected at byte"),
    "overlap": (lambda p: raw_file(p, {"v": GOOD, "w": GOOD}, bytes(8)), "expected at byte"),
    "shape and range": (lambda p: raw_file(p, {"w": GOOD | {"shape": [3]}}, bytes(8)), "tensor w: expected 12 bytes"),
    "negative": (lambda p: raw_file(p, {"w": GOOD | {"shape": [-2]}}, bytes(8)), "whole numbers"),
    "fraction": (lambda p: raw_file(p, {"w": GOOD | {"shape": [2.0]}}, bytes(8)), "whole numbers"),
    "true": (lambda p: raw_file(p, {"w": GOOD | {"shape": [True, 2]}}, bytes(8)), "whole numbers"),
    "unknown dtype": (lambda p: raw_file(p, {"w": GOOD | {"dtype": "F7"}}, bytes(8)), "got 'F7'"),
    "unknown field": (
        lambda p: raw_file(p, {"w": GOOD | {"x": 1}}, bytes(8)),
        "expected dtype, shape and data_offsets",
    ),
    "no object": (lambda p: raw_file(p, {"w": 3}), "tensor w"),
    "list": (lambda p: raw_file(p, []), "is it another format"),
    "not json": (lambda p: raw_file(p, None, text=b"{]"), "expected JSON"),
    "not utf-8": (lambda p: raw_file(p, None, text=b"{\xff"), "UTF-8"),
    "metadata": (lambda p: raw_file(p, {"__metadata__": {"a": 1}}), "__metadata__ of strings"),
    "repeated": (
        lambda p: raw_file(p, None, bytes(8), b'{"w": %s, "w": %s}' % ((json.dumps(GOOD).encode(),) * 2)),
        "'w' twice",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_damaged_header_is_refused_with_the_files_name(tmp_path: Path, case: str) -> None:
    write, message = BROKEN[case]
    write(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=message) as error:
        read_header(tmp_path / "x.safetensors")
    assert "x.safetensors" in str(error.value)


def test_a_header_above_the_cap_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    raw_file(tmp_path / "a", {"w": GOOD}, bytes(8))
    read_header(tmp_path / "a", max_bytes=61)
    with pytest.raises(ValueError, match="at most 20 bytes"):
        read_header(tmp_path / "a", max_bytes=20)
    with pytest.raises(ValueError, match="no such file"):
        read_header(tmp_path / "b")


@given(st.binary(max_size=80))
def test_arbitrary_bytes_are_refused_and_never_crash(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        path.write_bytes(data)
        with pytest.raises(ValueError, match="expected"):
            read_header(path)
