import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from merging.options import Options
from merging.solution import Solution
from merging.spherical import karcher
from merging.task_arithmetic import model_stock, task_arithmetic, warp
from tests.merging import oracle


def even(count: int) -> Tensor:
    return torch.full((1, count), 1 / count, dtype=torch.float64)


def told(solution: Solution) -> list[str]:
    return [note for note, mask in solution.notes.items() if bool(mask[0])]


def fan(cosine: float, count: int) -> Tensor:
    """Vectors of norms 1, 2, ... with the same cosine between any two."""
    gram = torch.full((count, count), cosine, dtype=torch.float64).fill_diagonal_(1)
    values, vectors = torch.linalg.eigh(gram)
    return torch.arange(1, count + 1).double()[:, None] * vectors * values.clamp(min=0).sqrt()


def test_task_arithmetic_scales_the_weights_and_normalises_on_request() -> None:
    gram = oracle.gram_of(torch.eye(3))
    weights = torch.tensor([[0.5, 1.5, -0.4]], dtype=torch.float64)
    plain = task_arithmetic(gram, weights, Options(scale=0.5)).coefficients
    assert torch.equal(plain, weights / 2)
    shared = task_arithmetic(gram, weights, Options(scale=0.5, normalize=True)).coefficients
    torch.testing.assert_close(shared, weights / 1.6 / 2, rtol=1e-15, atol=0)


def test_weights_that_sum_to_zero_cannot_be_normalised() -> None:
    gram = oracle.gram_of(torch.eye(2), torch.eye(2))
    weights = torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    solution = task_arithmetic(gram, weights, Options(normalize=True))
    assert solution.refused is not None
    assert solution.refused.tolist() == [True, False]
    assert "sum other than zero" in solution.reason
    assert bool(solution.coefficients.isfinite().all())


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 1.5])
def test_warp_is_the_karcher_mean_scaled_towards_the_base(scale: float) -> None:
    deltas = torch.randn(4, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    solution = warp(oracle.gram_of(deltas), weights, Options(scale=scale))
    expected = scale * oracle.karcher(list(deltas), weights[0].tolist())
    torch.testing.assert_close(solution.coefficients[0] @ deltas, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("policy", ["error", "linear", "base"])
def test_warp_follows_the_antipodal_policy_of_the_mean(policy: str) -> None:
    deltas = torch.tensor([[1.0, 0.0], [-2.0, 0.0]], dtype=torch.float64)
    options = Options(scale=0.5, antipodal=policy)  # type: ignore[arg-type]
    gram = oracle.gram_of(deltas)
    got, mean = warp(gram, even(2), options), karcher(gram, even(2), options)
    assert torch.equal(got.coefficients, mean.coefficients / 2)
    assert told(got) == told(mean)
    assert bool(got.refused) == (policy == "error")


@given(count=st.integers(2, 6), seed=st.integers(0, 999))
def test_model_stock_is_the_equation_of_the_paper(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    deltas = torch.randn(count, 40, dtype=torch.float64, generator=generator) + 0.8
    deltas = deltas * 10 ** torch.rand(count, 1, dtype=torch.float64, generator=generator)
    solution = model_stock(oracle.gram_of(deltas), even(count), Options())
    assert oracle.relative_error(solution.coefficients[0] @ deltas, oracle.model_stock(list(deltas))) < 1e-10
    assert told(solution) == []


@pytest.mark.parametrize(("cosine", "t"), [(1.0, 1.0), (0.0, 0.0), (0.5, 0.75), (-0.2, -1.0)])
def test_model_stock_goes_as_far_as_the_angles_say(cosine: float, t: float) -> None:
    solution = model_stock(oracle.gram_of(fan(cosine, 3)), even(3), Options())
    torch.testing.assert_close(solution.coefficients, t * even(3), rtol=1e-7, atol=1e-9)
    if abs(cosine) > 1e-9:
        assert told(solution) == (["beyond the base"] if t < 0 else [])


@pytest.mark.parametrize("deltas", [fan(-1.0, 2), fan(-0.5, 3), torch.tensor([[1.0], [-2.0], [3.0], [-4.0]])])
def test_where_the_unit_task_vectors_balance_the_base_is_kept(deltas: Tensor) -> None:
    solution = model_stock(oracle.gram_of(deltas), even(len(deltas)), Options())
    assert told(solution) == ["no stock: base"]
    assert not solution.coefficients.any()


def test_a_zero_task_vector_has_cosine_zero_with_every_other() -> None:
    parallel = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    solution = model_stock(oracle.gram_of(parallel), even(3), Options())
    torch.testing.assert_close(solution.coefficients, 0.6 * even(3), rtol=1e-12, atol=0)  # cos = 1/3
    assert told(solution) == ["zero input"]
    still = model_stock(oracle.gram_of(torch.zeros(2, 2)), even(2), Options())
    assert not still.coefficients.any()
    assert told(still) == ["zero"]
