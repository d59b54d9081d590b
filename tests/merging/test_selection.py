from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from merging.selection import find_bands, survey
from tests.merging.sparse_oracle import matrices, walk_over


def chosen(vectors: Tensor, rows: int, ranks: list[tuple[int, int]], smallest_first: bool) -> Tensor:
    walk = walk_over(vectors, rows)
    bands = find_bands(walk, survey(walk, smallest_first=smallest_first), ranks)
    parts = [
        torch.stack([band.holds(i, vector) for band, vector in zip(bands, chunk, strict=True)])
        for i, chunk in enumerate(walk())
    ]
    return torch.cat(parts, dim=1)


def sorted_out(vectors: Tensor, ranks: list[tuple[int, int]], smallest_first: bool) -> Tensor:
    order = vectors.abs().flatten(1).sort(dim=1, descending=not smallest_first, stable=True).indices
    expected = torch.zeros_like(order, dtype=torch.bool)
    for row, places, (start, stop) in zip(expected, order, ranks, strict=True):
        row[places[start:stop]] = True
    return expected.view_as(vectors)


@given(matrices(), st.booleans(), st.data())
def test_ranks_are_those_of_a_stable_sort(case: tuple[Tensor, int], smallest_first: bool, data: st.DataObject) -> None:
    vectors, rows = case
    pair = st.lists(st.integers(0, vectors[0].numel()), min_size=2, max_size=2).map(sorted).map(tuple)
    ranks = data.draw(st.lists(pair, min_size=len(vectors), max_size=len(vectors)))
    got = chosen(vectors, rows, ranks, smallest_first)
    assert torch.equal(got, sorted_out(vectors, ranks, smallest_first))


@pytest.mark.parametrize("smallest_first", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 40])
def test_numbers_of_every_size(rows: int, smallest_first: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    exponents = torch.rand(3, 40, 50, generator=generator) * 75 - 44
    vectors = torch.randn(3, 40, 50, generator=generator) * 10**exponents
    vectors[0, 3, :9] = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 3.4028235e38, -3.4028235e38, 1e-38, 1.0, -1.0])
    assert vectors.isfinite().all()
    ranks = [(0, 600), (1, 1999), (900, 901)]
    got = chosen(vectors, rows, ranks, smallest_first)
    assert torch.equal(got, sorted_out(vectors, ranks, smallest_first))
    assert got.sum((1, 2)).tolist() == [600, 1998, 1]


def test_the_sign_of_zero_does_not_count() -> None:
    vectors = torch.tensor([[[-0.0, 0.0, -0.0, 0.0]]])
    assert chosen(vectors, 1, [(0, 2)], False).flatten().tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("values", "ranks", "walks"), [("distinct", (3, 9), 2), ("equal", (3, 9), 3), ("any", (0, 12), 1)]
)
def test_walks_are_few(values: str, ranks: tuple[int, int], walks: int) -> None:
    vectors = torch.ones(1, 3, 4) if values == "equal" else torch.arange(12.0).reshape(1, 3, 4)
    started = []

    def walk() -> Iterator[Tensor]:
        started.append(1)
        return walk_over(vectors, 2)()

    find_bands(walk, survey(walk), [ranks])
    assert len(started) == walks


def test_a_survey_counts() -> None:
    vectors = torch.tensor([[[0.0, -0.0, 1.0], [2.0, -3.0, 0.0]], [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]])
    seen = survey(walk_over(vectors, 1))
    assert (seen.size, seen.nonzero) == (6, (3, 6))
    assert seen.counts.sum(1).tolist() == [6, 6]
