import io
from pathlib import Path

import numpy as np
import pytest

from storage.array_file import read_array, write_array


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.arange(6, dtype=np.int64).reshape(2, 3).T,
        np.array(2.5),
        np.empty((0, 4), dtype=np.float16),
    ],
    ids=["rows", "columns", "a number", "empty"],
)
def test_numpys_own_reader_and_ours_give_back_what_was_written(tmp_path: Path, array: np.ndarray) -> None:
    file = tmp_path / "a.vectors"
    write_array(file, array)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.vectors"], "no ending is added"
    for found in (np.load(file, allow_pickle=False), read_array(file)):
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused_and_the_old_file_stays(tmp_path: Path, bad: float) -> None:
    file = tmp_path / "a.npy"
    write_array(file, np.ones(2))
    with pytest.raises(ValueError, match=r"a\.npy: expected finite values, got 1 that"):
        write_array(file, np.array([1.0, bad]))
    assert read_array(file).tolist() == [1, 1]
    assert len(list(tmp_path.iterdir())) == 1


def test_python_objects_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.npy: expected an array of numbers, got one of Python objects"):
        write_array(tmp_path / "a.npy", np.array([object()]))
    assert list(tmp_path.iterdir()) == []


def _bytes_of(array: np.ndarray, **options: bool) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an array",
        _bytes_of(np.ones(4))[:-1],
        _bytes_of(np.ones(4))[:20],
        _bytes_of(np.ones(4)) + b"\0",
        _bytes_of(np.array([{"a": 1}]), allow_pickle=True),
    ],
    ids=["nothing", "text", "cut", "cut header", "padded", "pickled"],
)
def test_what_is_no_whole_array_of_numbers_is_refused_by_name_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npy: expected") as error:
        read_array(tmp_path / "a.npy")
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.npy: expected a \.npy file, got no such file"):
        read_array(tmp_path / "a.npy")
