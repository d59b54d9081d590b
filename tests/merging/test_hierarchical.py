import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from merging.hierarchical import hierarchical_slerp, sequential_slerp
from merging.options import Options
from merging.spherical import karcher
from tests.merging import oracle

ORACLES = {hierarchical_slerp: oracle.hierarchical, sequential_slerp: oracle.sequential}


@pytest.mark.parametrize("method", ORACLES)
@given(count=st.integers(2, 9), spread=st.sampled_from([1e-6, 1e-4, 0.1, 1.0, 5.0]), seed=st.integers(0, 999))
def test_it_is_the_slerps_of_whole_vectors(method: type, count: int, spread: float, seed: int) -> None:
    vectors, weights = oracle.scattered(count, spread, seed)
    solution = method(oracle.gram_of(vectors), weights, Options())
    expected = ORACLES[method](list(vectors), weights[0].tolist())
    assert oracle.relative_error(solution.coefficients[0] @ vectors, expected) < 1e-9
    assert not bool(solution.refused)


def test_five_inputs_meet_as_a_tree_and_the_odd_one_last() -> None:
    vectors, _ = oracle.scattered(5, 0.5, 0)
    units = list(vectors / vectors.norm(dim=1, keepdim=True))
    pairs = oracle.arc(oracle.arc(units[0], units[1], 0.5), oracle.arc(units[2], units[3], 0.5), 0.5)
    expected = oracle.arc(pairs, units[4], 0.2)
    weights = torch.full((1, 5), 0.2, dtype=torch.float64)
    got = hierarchical_slerp(oracle.gram_of(torch.stack(units)), weights, Options()).coefficients[0] @ torch.stack(
        units
    )
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", ORACLES)
def test_near_each_other_it_is_close_to_the_karcher_mean(method: type) -> None:
    vectors, weights = oracle.scattered(5, 0.02, 3)
    gram = oracle.gram_of(vectors)
    got = method(gram, weights, Options()).coefficients[0] @ vectors
    mean = karcher(gram, weights, Options()).coefficients[0] @ vectors
    assert 0 < oracle.relative_error(got, mean) < 0.02**2
    assert float(got.norm()) == pytest.approx(float(mean.norm()), rel=1e-12)


@pytest.mark.parametrize("method", ORACLES)
def test_a_zero_input_in_any_place_lets_the_others_meet(method: type) -> None:
    vectors, weights = oracle.scattered(4, 0.7, 5)
    for place in range(4):
        holed = vectors.clone()
        holed[place] = 0
        solution = method(oracle.gram_of(holed), weights, Options())
        mean = solution.coefficients[0] @ holed
        assert float(mean.norm()) == pytest.approx(oracle.length(list(holed), weights[0].tolist()), rel=1e-12)
        others = [index for index in range(4) if index != place]
        if method is sequential_slerp:
            rest = weights[0, others] / weights[0, others].sum()
            expected = oracle.sequential(list(vectors[others]), rest.tolist())
            torch.testing.assert_close(mean / mean.norm(), expected / expected.norm(), rtol=1e-12, atol=1e-14)
        assert bool(solution.notes["zero input"])


@pytest.mark.parametrize("method", ORACLES)
def test_an_arc_inside_the_tree_may_be_antipodal_where_the_karcher_mean_exists(method: type) -> None:
    angles = [0.0, math.pi, 0.3, 0.3]
    vectors = torch.tensor([[math.cos(x), math.sin(x)] for x in angles], dtype=torch.float64)
    gram, weights = oracle.gram_of(vectors), torch.tensor([[0.1, 0.1, 0.4, 0.4]], dtype=torch.float64)
    assert not bool(karcher(gram, weights, Options()).refused)
    assert bool(method(gram, weights, Options()).refused)
    assert bool(method(gram, weights, Options(antipodal="linear")).notes["antipodal: linear"])


@pytest.mark.parametrize("method", ORACLES)
def test_partial_sums_of_both_signs_that_cancel_are_refused(method: type) -> None:
    vectors, _ = oracle.scattered(3, 0.3, 2)
    weights = torch.tensor([[0.5, -0.5, 1.0]], dtype=torch.float64)
    assert bool(method(oracle.gram_of(vectors), weights, Options()).refused)
