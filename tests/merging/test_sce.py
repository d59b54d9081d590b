import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from merging.options import Options
from merging.sce import sce, variance
from tests.merging import sparse_oracle
from tests.merging.sparse_oracle import matrices, run, walk_over


def merged(vectors: Tensor, rows: int, share: float) -> Tensor:
    walk = walk_over(vectors, rows)
    return run(sce(walk, torch.ones(len(vectors)).double(), Options(select_topk=share), "w"), walk)


@given(matrices(), st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.99, 1.0]))
def test_it_is_that_of_plain_loops(case: tuple[Tensor, int], share: float) -> None:
    vectors, rows = case
    expected = sparse_oracle.sce([vector.flatten().tolist() for vector in vectors], share)
    torch.testing.assert_close(merged(vectors, rows, share).flatten(), torch.tensor(expected))


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e3])
def test_it_scales_with_the_task_vectors(size: float) -> None:
    vectors = (
        torch.randn(3, 12, 9, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2, 5])[:, None, None]
    )
    torch.testing.assert_close(merged(size * vectors, 5, 0.5), size * merged(vectors, 5, 0.5), rtol=1e-5, atol=0)


def test_an_input_far_smaller_than_the_others_is_not_shrunk() -> None:
    vectors = torch.tensor([[[1.0, 0.0]], [[0.0, 1e-5]]])
    torch.testing.assert_close(merged(vectors, 1, 1.0), torch.tensor([[1.0, 1e-5]]), rtol=1e-5, atol=0)


def test_equal_inputs_are_their_own_average() -> None:
    one = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(merged(one.expand(3, 6, 5), 4, 1.0), one)
    assert not merged(one.expand(3, 6, 5), 4, 0.9).any(), "nothing differs, so nothing is selected"


def test_zero_task_vectors_stay_zero() -> None:
    assert not merged(torch.zeros(2, 3, 4), 2, 1.0).any()


def test_the_variance_is_the_rounded_exact_one() -> None:
    vectors = torch.randn(5, 20, 30, generator=torch.Generator().manual_seed(0)) * 1e-3 + 1
    assert torch.equal(variance(vectors), vectors.double().var(0, correction=0).float())
    assert not variance(vectors[:1].expand(7, 20, 30)).any()
