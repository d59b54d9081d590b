import pytest

from merging.pieces import row_ranges


@pytest.mark.parametrize("shape", [(), (0,), (5,), (0, 3), (3, 0), (140_000, 3), (3, 140_000), (2, 3, 4)])
def test_row_ranges_cover_every_row_once(shape: tuple[int, ...]) -> None:
    ranges = list(row_ranges(shape))
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(shape[0] if shape else 1))
