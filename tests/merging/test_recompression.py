"""Recompression against the dense SVD, and the span of low-rank updates against dense products."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merging.adapter_file import Factors
from merging.low_rank import concatenated, span_of
from merging.recompression import compress_dense, compress_product


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=60)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    inner=st.integers(1, 7),
    rank=st.integers(1, 9),
    seed=st.integers(0),
)
def test_the_best_factors_of_a_product(rows: int, columns: int, inner: int, rank: int, seed: int) -> None:
    b, a = random(rows, inner, seed=seed % 2**31), random(inner, columns, seed=seed % 2**31 + 1)
    found_b, found_a, error = compress_product(b, a, rank)
    dense = b @ a
    values = torch.linalg.svdvals(dense)
    assert found_b.shape[1] == found_a.shape[0] <= min(rank, rows, columns, inner)
    assert error == pytest.approx(float(values[rank:].norm()), rel=1e-9, abs=1e-12 * float(values[0]))
    distance = float((dense - found_b.double() @ found_a.double()).norm())
    assert distance == pytest.approx(error, rel=1e-4, abs=1e-5 * float(values[0]))
    dense_b, dense_a, dense_error = compress_dense(dense.float(), rank)
    assert dense_error == pytest.approx(error, rel=1e-4, abs=1e-5 * float(values[0]))
    torch.testing.assert_close(dense_b @ dense_a, found_b @ found_a, rtol=1e-3, atol=1e-3 * float(values[0]))


def test_a_product_of_lower_rank_than_its_factors_is_kept_whole() -> None:
    b, a = random(8, 2, seed=0), random(2, 9, seed=1)
    twice_b, twice_a = torch.cat([b, b], dim=1), torch.cat([a, a])
    found_b, found_a, error = compress_product(twice_b, twice_a, 3)
    assert found_b.shape == (8, 2)
    assert error < 1e-12
    torch.testing.assert_close((found_b @ found_a).double(), 2 * b @ a, rtol=1e-5, atol=1e-5)


def test_nothing_is_an_update_of_rank_one() -> None:
    for found in (
        compress_dense(torch.zeros(3, 4), 2),
        compress_product(torch.zeros(3, 2).double(), torch.zeros(2, 4).double(), 2),
    ):
        assert (found[0].shape, found[1].shape, found[2]) == ((3, 1), (1, 4), 0.0)
        assert not (found[0] @ found[1]).any()


@pytest.mark.parametrize("decay", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(60, 90), (90, 60)])
def test_large_matrices_are_decomposed_by_iteration(decay: float, shape: tuple[int, int]) -> None:
    u, _, v = torch.linalg.svd(random(*shape, seed=3), full_matrices=False)
    values = decay ** torch.arange(60.0).double()
    matrix = ((u * values) @ v).float()
    b, a, error = compress_dense(matrix, 5, whole=8)
    best = float(values[5:].norm())
    assert best * (1 - 1e-5) <= error <= best * (1 + 1e-4)
    assert float((matrix - b @ a).norm()) == pytest.approx(error, rel=1e-5)


def factors(rows: int, columns: int, rank: int, scale: float, seed: int) -> Factors:
    return Factors(random(rank, columns, seed=seed).float(), random(rows, rank, seed=seed + 1).float(), scale)


@settings(max_examples=60)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    ranks=st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(any),
    seed=st.integers(0, 10**6),
)
def test_updates_in_their_span_are_the_dense_ones(rows: int, columns: int, ranks: list[int], seed: int) -> None:
    scales = random(len(ranks), seed=seed).tolist()
    updates = [
        factors(rows, columns, rank, scale, seed + 10 * place) if rank else None
        for place, (rank, scale) in enumerate(zip(ranks, scales, strict=True))
    ]
    dense = torch.stack(
        [
            torch.zeros(rows, columns).double() if each is None else each.scale * each.b.double() @ each.a.double()
            for each in updates
        ]
    )
    span = span_of(updates)
    torch.testing.assert_close(span.left @ span.cores @ span.right.mT, dense)
    coordinates, flat = span.cores.flatten(1), dense.flatten(1)
    torch.testing.assert_close(coordinates @ coordinates.mT, flat @ flat.mT)
    coefficients = random(len(ranks), seed=seed + 1)
    merged = concatenated(updates, coefficients)
    assert merged is not None
    assert (merged.rank, merged.scale) == (sum(ranks), 1.0)
    expected = torch.tensordot(coefficients, dense, dims=1)
    torch.testing.assert_close(merged.b.double() @ merged.a.double(), expected, rtol=1e-5, atol=1e-5)


def test_inner_products_do_not_cancel_where_the_factors_nearly_do() -> None:
    # B A = 1e-7 u v' as a difference of two products of size 1: B'B and A A' alone would give noise for its square.
    u, v = random(50, 1, seed=0).float(), random(1, 40, seed=1).float()
    nearly = torch.cat([v, v * (1 - 2.0**-23)])
    update = Factors(nearly, torch.cat([u, -u], dim=1), 1.0)
    dense = update.b.double() @ update.a.double()
    assert float(span_of([update]).cores.norm()) == pytest.approx(float(dense.norm()), rel=1e-6)


def test_factors_that_share_one_side_are_not_repeated() -> None:
    one, other = factors(6, 5, 2, 0.5, 0), factors(6, 5, 2, 2.0, 7)
    merged = concatenated([one, Factors(one.a, other.b, 3.0), other], torch.tensor([1.0, -1.0, 2.0]).double())
    assert merged is not None
    assert merged.rank == 4
    expected = (0.5 * one.b - 3 * other.b) @ one.a + 4 * other.b @ other.a
    torch.testing.assert_close(merged.b @ merged.a, expected)


def test_inputs_without_a_coefficient_drop_out() -> None:
    updates = [factors(6, 5, 2, 1.0, 0), factors(6, 5, 3, 1.0, 5)]
    merged = concatenated(updates, torch.tensor([0.0, 1.0]).double())
    assert merged is not None
    assert merged.rank == 3
    assert concatenated(updates, torch.zeros(2).double()) is None
    assert concatenated([None, None], torch.ones(2).double()) is None
