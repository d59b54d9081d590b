from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from merging.consensus import add, elect
from merging.options import Options
from tests.merging import sparse_oracle
from tests.merging.sparse_oracle import matrices

weight = st.sampled_from([1.0, 0.5, 0.25, 0.75, -0.5, 0.0])


def whole(index: int, chunk: Tensor) -> Tensor:
    return chunk


def vectors_of(chunk: Tensor) -> list[list[float]]:
    return [vector.flatten().tolist() for vector in chunk]


@given(matrices(), st.lists(weight, min_size=4, max_size=4), st.booleans(), st.sampled_from([1.0, 0.5, -2.0]))
def test_a_vote_is_that_of_plain_loops(
    case: tuple[Tensor, int], weights: list[float], normalize: bool, scale: float
) -> None:
    chunk = case[0]
    weights = weights[: len(chunk)]
    combine = elect(whole, torch.tensor(weights).double(), Options(normalize=normalize, scale=scale))
    expected = sparse_oracle.elect(vectors_of(chunk), weights, normalize, scale)
    torch.testing.assert_close(combine(0, chunk).flatten(), torch.tensor(expected))


@given(matrices(), st.lists(weight, min_size=4, max_size=4), st.booleans(), st.sampled_from([1.0, 0.5, -2.0]))
def test_a_sum_is_that_of_plain_loops(
    case: tuple[Tensor, int], weights: list[float], normalize: bool, scale: float
) -> None:
    chunk = case[0]
    weights = weights[: len(chunk)]
    options = Options(normalize=normalize and sum(weights) != 0, scale=scale)
    expected = sparse_oracle.add(vectors_of(chunk), weights, options.normalize, scale)
    got = add(whole, torch.tensor(weights).double(), options)(0, chunk).flatten()
    torch.testing.assert_close(got, torch.tensor(expected))


@pytest.mark.parametrize("values", [(1.0, -1.0, -1.0), (2.0, -3.0, -0.5), (0.1, -0.1, -0.1)])
def test_a_close_vote_does_not_depend_on_the_order(values: tuple[float, ...]) -> None:
    results = set()
    for order in permutations(zip(values, (0.5, 0.3, 0.2), strict=True)):
        chunk = torch.tensor([value for value, _ in order])[:, None, None]
        combine = elect(whole, torch.tensor([w for _, w in order]).double(), Options(normalize=True))
        results.add(round(float(combine(0, chunk)), 5))
    assert len(results) == 1


def test_weights_that_cancel_where_they_meet_do_not_divide() -> None:
    chunk = torch.tensor([[[2.0, 2.0]], [[-3.0, 1.0]]])
    got = elect(whole, torch.tensor([1.0, -1.0]).double(), Options(normalize=True))(0, chunk)
    assert got.tolist() == [[5.0, 2.0]]


def test_a_sum_of_weights_of_zero_is_refused() -> None:
    weights = torch.tensor([0.1, 0.2, -0.3]).double()
    with pytest.raises(ValueError, match="--weights: expected a sum other than zero to divide by, got .*; change"):
        add(whole, weights, Options(normalize=True))
    assert add(whole, weights, Options())(0, torch.ones(3, 1, 1)).abs().item() < 1e-7
