import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merging.ragged import INDEX_BITS, cells_of, lay_out, on_device, pairs_of

SHAPE = st.lists(st.integers(0, 70), max_size=3).map(tuple)


@settings(max_examples=30)
@given(shapes=st.lists(SHAPE, min_size=1, max_size=6), rows=st.booleans(), chunk=st.sampled_from([16, 48]))
def test_the_chunks_cover_every_element_once(shapes: list[tuple[int, ...]], rows: bool, chunk: int) -> None:
    ragged = lay_out(shapes, rows=rows, chunk=chunk)
    seen = [torch.zeros(math.prod(shape), dtype=torch.int64) for shape in shapes]
    table = ragged.chunk_table(torch.arange(ragged.runs))
    assert len(table) == ragged.chunks
    for entry in table.tolist():
        run, index = entry >> INDEX_BITS, entry & (2**INDEX_BITS - 1)
        first = int(ragged.starts[run]) + index * chunk
        last = min(first + chunk, int(ragged.starts[run] + ragged.sizes[run]))
        assert first < last
        seen[int(ragged.tensors[run])][first:last] += 1
    assert all(bool((count == 1).all()) for count in seen)


@given(groups=st.permutations([0, 0, 1, 2, 2, 2]), chosen=st.sets(st.integers(0, 5)))
def test_runs_are_sorted_by_group_and_slots_are_consecutive(groups: list[int], chosen: set[int]) -> None:
    shapes = [(20 * (place + 1),) for place in range(6)]
    ragged = lay_out(shapes, groups=groups, chunk=16)
    assert ragged.groups.tolist() == sorted(groups)
    assert [groups[tensor] for tensor in ragged.tensors.tolist()] == sorted(groups)
    assert ragged.members.tolist() == [0, 2, 3, 6]
    assert ragged.slots.diff().tolist() == [math.ceil(int(size) / 16) for size in ragged.sizes]
    table = ragged.chunk_table(torch.tensor(sorted(chosen), dtype=torch.int64))
    expected = [(run << INDEX_BITS) | index for run in sorted(chosen) for index in range(int(ragged.slots.diff()[run]))]
    assert table.tolist() == expected


def test_sizes_beyond_32_bits() -> None:
    elements = 3 * 2**31
    ragged = lay_out([(3, 2**31)], rows=True)
    assert ragged.starts.tolist() == [0, 2**31, 2**32]
    assert ragged.starts.dtype == torch.int64
    assert lay_out([(elements,)]).chunks == elements // 2**15


def test_addresses_are_those_of_the_elements() -> None:
    tensors = [[torch.arange(12.0).view(3, 4), torch.arange(12, dtype=torch.bfloat16).view(3, 4)]]
    ragged = lay_out([(3, 4)], rows=True)
    table = ragged.addresses(tensors)
    assert table.tolist() == [[row.data_ptr() for row in pair] for pair in zip(*tensors[0], strict=True)]


def test_launches_are_split_by_kind_and_alignment() -> None:
    storage = torch.zeros(200)
    tensors = [[storage[:8]], [storage[9:17]], [storage[32:40].to(torch.float64)], [storage[60:60]]]
    ragged = lay_out([tuple(row[0].shape) for row in tensors])
    found = ragged.launches([row[0].dtype for row in tensors], ragged.addresses(tensors))
    assert [(kind, aligned, runs.tolist()) for kind, aligned, runs in found] == [
        (0, True, [0]),
        (0, False, [1]),
        (2, True, [2]),
    ]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_cells_find_the_products_of_the_pairs(n: int) -> None:
    x = torch.randn(n, 7, dtype=torch.float64)
    sums = torch.stack(
        [torch.stack([x[i] @ x[i], x[i] @ x[j], x[j] @ x[j], torch.tensor(torch.nan)]) for i, j in pairs_of(n).tolist()]
    )
    torch.testing.assert_close(sums.flatten()[cells_of(n)], x @ x.T)


def test_tables_travel_together() -> None:
    tables = [torch.arange(6).view(2, 3), torch.zeros(0, dtype=torch.int64), torch.tensor(5)]
    found = on_device(tables, torch.device("cpu"))
    assert [table.tolist() for table in found] == [[[0, 1, 2], [3, 4, 5]], [], 5]
    assert len({table.untyped_storage().data_ptr() for table in found}) == 1
