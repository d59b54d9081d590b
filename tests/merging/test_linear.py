import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from merging.linear import linear, norm_matched, passthrough
from merging.options import Options
from tests.merging import oracle


def test_the_coefficients_of_the_average_are_the_weights_whatever_the_angles() -> None:
    vectors = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([[0.5, 0.3, 0.2], [1.5, 0.0, -0.5]], dtype=torch.float64)
    solution = linear(oracle.gram_of(vectors, -vectors), weights, Options())
    assert torch.equal(solution.coefficients, weights)
    assert not solution.notes
    assert solution.refused is None


@given(count=st.integers(2, 6), seed=st.integers(0, 999), log_spread=st.floats(-3, 1))
def test_norm_matched_is_the_soup_brought_to_length(count: int, seed: int, log_spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.ones(count, 30) + 10**log_spread * torch.randn(count, 30, generator=generator)
    vectors = (10 ** torch.rand(count, 1, generator=generator) * vectors).double()
    weights = torch.rand(1, count, dtype=torch.float64, generator=generator) + 0.1
    weights = weights / weights.sum()
    soup = oracle.linear(list(vectors), weights[0].tolist())
    expected = oracle.length(list(vectors), weights[0].tolist()) * soup / soup.norm()
    solution = norm_matched(oracle.gram_of(vectors), weights, Options())
    assert oracle.relative_error(solution.coefficients[0] @ vectors, expected) < 1e-10
    assert not bool(solution.refused)


@pytest.mark.parametrize(("gap", "determined"), [(1.1e-3, True), (0.9e-3, False)])
def test_a_soup_without_a_direction_follows_the_antipodal_policy(gap: float, determined: bool) -> None:
    opposite = torch.tensor(torch.pi - gap, dtype=torch.float64)
    gram = oracle.gram_of([torch.tensor([1.0, 0.0]).double(), torch.stack([opposite.cos(), opposite.sin()])])
    half = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    assert bool(norm_matched(gram, half, Options()).refused) != determined
    for policy, note in (("linear", "antipodal: linear"), ("base", "antipodal: base")):
        solution = norm_matched(gram, half, Options(antipodal=policy))  # type: ignore[arg-type]
        assert bool(solution.notes[note]) != determined


@pytest.mark.parametrize("scale", [1.0, 0.5, -2.0])
def test_passthrough_is_the_input_scaled(scale: float) -> None:
    gram = oracle.gram_of(torch.ones(1, 4), torch.zeros(1, 4))
    solution = passthrough(gram, torch.ones(2, 1, dtype=torch.float64), Options(scale=scale))
    assert torch.equal(solution.coefficients, torch.full((2, 1), scale, dtype=torch.float64))
