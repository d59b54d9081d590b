import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from merging.trimming import drop_by_rank, drop_evenly, keep_largest, keep_middle, restore_length
from merging.walk import Trim, Walk
from tests.merging import sparse_oracle
from tests.merging.sparse_oracle import matrices, walk_over

shares = st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.5, 0.9, 1.0])


def trimmed(trim: Trim, walk: Walk) -> Tensor:
    return torch.cat([trim(index, chunk.clone()) for index, chunk in enumerate(walk())], dim=1)


@given(matrices(), st.lists(shares, min_size=4, max_size=4))
def test_the_largest_are_those_of_a_sort(case: tuple[Tensor, int], densities: list[float]) -> None:
    vectors, rows = case
    walk = walk_over(vectors, rows)
    got = trimmed(keep_largest(walk, densities[: len(vectors)]), walk)
    for vector, kept, density in zip(vectors, got, densities, strict=False):
        assert kept.flatten().tolist() == sparse_oracle.keep_largest(vector.flatten().tolist(), density)


@given(matrices(), st.lists(shares, min_size=4, max_size=4), st.lists(shares, min_size=4, max_size=4))
def test_the_middle_is_that_of_a_sort(case: tuple[Tensor, int], densities: list[float], gammas: list[float]) -> None:
    vectors, rows = case
    walk = walk_over(vectors, rows)
    got = trimmed(keep_middle(walk, densities[: len(vectors)], gammas[: len(vectors)]), walk)
    for vector, kept, density, gamma in zip(vectors, got, densities, gammas, strict=False):
        assert kept.flatten().tolist() == sparse_oracle.keep_middle(vector.flatten().tolist(), density, gamma)


@pytest.mark.parametrize("rows", [1, 4, 30])
def test_exactly_so_many_are_kept(rows: int) -> None:
    vectors = torch.randn(2, 30, 40, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    walk = walk_over(vectors, rows)
    got = trimmed(keep_largest(walk, [0.3, 1e-9]), walk)
    assert got.count_nonzero((1, 2)).tolist() == [360, 1]
    assert float(got[1].abs().max()) == float(vectors[1].abs().max())


def test_dropping_evenly_keeps_the_density_and_divides_by_it() -> None:
    vectors = 1 + torch.rand(4, 100, 200, generator=torch.Generator().manual_seed(0))
    walk = walk_over(vectors, 30)
    got = trimmed(drop_evenly([0.3, 0.8, 1.0, 0.0], rescale=True, seed=0, name="w"), walk)
    kept = (got != 0).float().mean((1, 2))
    # the standard deviation of a share of 20,000 is at most 0.0033
    torch.testing.assert_close(kept, torch.tensor([0.3, 0.8, 1.0, 0.0]), rtol=0, atol=0.017)
    for vector, left, density in zip(vectors[:3], got, [0.3, 0.8, 1.0], strict=False):
        torch.testing.assert_close(left[left != 0], vector[left != 0] / density)
    plain = trimmed(drop_evenly([0.3, 0.8, 1.0, 0.0], rescale=False, seed=0, name="w"), walk)
    assert torch.equal(plain, vectors * (got != 0))


def test_masks_of_inputs_and_chunks_are_independent() -> None:
    ones = torch.ones(2, 40, 500)
    first, second = trimmed(drop_evenly([0.5, 0.5], rescale=False, seed=0, name="w"), walk_over(ones, 20))
    for one, other in ((first, second), (first[:20], first[20:])):
        # of two independent masks a quarter is common; the standard deviation is at most 0.0043
        assert abs(float((one * other).mean()) - 0.25) < 0.02


def test_an_input_does_not_change_the_masks_of_others() -> None:
    vectors = torch.randn(3, 10, 20, generator=torch.Generator().manual_seed(0))
    trim = drop_evenly([0.5] * 3, rescale=True, seed=1, name="w")
    other = torch.cat([vectors[:1], torch.zeros(1, 10, 20), vectors[2:]])
    got, beside = trimmed(trim, walk_over(vectors, 4)), trimmed(trim, walk_over(other, 4))
    assert torch.equal(got[[0, 2]], beside[[0, 2]])


@pytest.mark.parametrize("by_rank", [False, True])
def test_the_expected_task_vector_is_the_whole_one(by_rank: bool) -> None:
    row = torch.randn(1, 1, 50, generator=torch.Generator().manual_seed(0))
    walk, seeds, rows = walk_over(row.expand(1, 80, 50), 80), 100, 80
    total = torch.zeros(50, dtype=torch.float64)
    for seed in range(seeds):
        even = drop_evenly([0.5], rescale=True, seed=seed, name="w")
        trim = drop_by_rank([0.5], [0.2], rescale=True, seed=seed, name="w") if by_rank else even
        total += trimmed(trim, walk)[0].sum(0)
    error = (total / (seeds * rows) - row[0, 0]) / row[0, 0]
    # the smallest probability is 0.3: an error has standard deviation at most sqrt(0.7 / 0.3 / 8000) = 0.017
    assert float(error.abs().max()) < 0.08
    assert float(error.mean().abs()) < 0.01


def test_dropping_by_rank_keeps_the_large_more_often() -> None:
    vectors = torch.arange(1.0, 9.0).expand(1, 5000, 8)
    trim = drop_by_rank([0.5], [0.35], rescale=False, seed=0, name="w")
    kept = (trimmed(trim, walk_over(vectors, 1000))[0] != 0).float().mean(0)
    # the standard deviation of a share of 5,000 is at most 0.0071
    torch.testing.assert_close(kept, torch.linspace(0.15, 0.85, 8), rtol=0, atol=0.035)


def test_dropping_by_rank_divides_by_the_probability() -> None:
    vectors = torch.tensor([[[3.0, -1.0, 2.0]]]).expand(3, 200, 3).contiguous()
    got = trimmed(drop_by_rank([0.5, 1.0, 0.0], [0.25] * 3, rescale=True, seed=0, name="w"), walk_over(vectors, 200))
    expected = torch.tensor([3 / 0.75, -1 / 0.25, 2 / 0.5]).expand(200, 3)
    assert torch.equal(got[0][got[0] != 0], expected[got[0] != 0])
    assert torch.equal(got[1], vectors[1])
    assert not got[2].any()


@pytest.mark.parametrize("rows", [1, 3, 10])
def test_the_length_is_restored(rows: int) -> None:
    vectors = torch.randn(3, 10, 20, generator=torch.Generator().manual_seed(0))
    vectors[2] = 0
    walk = walk_over(vectors, rows)
    got = trimmed(restore_length(walk, keep_largest(walk, [0.2, 0.7, 0.5])), walk)
    torch.testing.assert_close(got.abs().sum((1, 2)), vectors.abs().sum((1, 2)))
    assert got.count_nonzero((1, 2)).tolist() == [40, 140, 0]


def test_what_is_too_short_is_not_restored() -> None:
    vectors = torch.tensor([[[4e-3, 4e-3]], [[4.0, 4.0]]])
    walk = walk_over(vectors, 1)
    got = trimmed(restore_length(walk, keep_largest(walk, [0.5, 0.5]), shortest=0.01), walk)
    torch.testing.assert_close(got, torch.tensor([[[4e-3, 0.0]], [[8.0, 0.0]]]))
