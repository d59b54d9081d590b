import math

import pytest
import torch
from torch import Tensor

from merging.gram import angles_of, measure, row_ranges
from merging.sources import HeldTensor
from tests.merging import oracle


def pair(theta: float, ratio: float, size: int = 100_000) -> tuple[Tensor, Tensor]:
    u, v = torch.randn(2, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u = u / u.norm()
    v = v - (v @ u) * u
    return u, ratio * (math.cos(theta) * u + math.sin(theta) * v / v.norm())


@pytest.mark.parametrize("ratio", [1.0, 10.0, 1e-3])
@pytest.mark.parametrize("theta", [1e-7, 1e-6, 1e-5, 1e-4, 2e-4, 1e-2, 1.5, math.pi - 1e-2, math.pi - 1e-5])
def test_angles_are_right_from_nearly_parallel_to_nearly_opposite(theta: float, ratio: float) -> None:
    inputs = [HeldTensor(x, "x") for x in pair(theta, ratio)]
    gram = measure("w", inputs, None, None)
    small = min(theta, math.pi - theta)
    measured = float(gram.angles[0, 1])
    assert min(measured, math.pi - measured) == pytest.approx(small, rel=1e-6)
    assert (measured > 1) == (theta > 1)


def test_float32_angles_are_those_of_the_stored_values() -> None:
    a, b = (x.float() for x in pair(1e-4, 10.0))
    gram = measure("w", [HeldTensor(a, "a"), HeldTensor(b, "b")], None, None)
    assert float(gram.angles[0, 1]) == pytest.approx(oracle.angle_between(a, b), rel=1e-6)


def test_the_gram_is_that_of_differences_from_the_origin_over_several_chunks() -> None:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(500, 300, generator=generator)
    inputs = [base + 1e-3 * torch.randn(500, 300, generator=generator) for _ in range(3)]
    held = [HeldTensor(x, "x") for x in inputs]
    gram = measure("w", held, HeldTensor(base, "base"), None)
    deltas = torch.stack([(x.double() - base.double()).flatten() for x in inputs])
    torch.testing.assert_close(gram.products, deltas @ deltas.T, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(gram.norms, deltas.norm(dim=1), rtol=1e-12, atol=0)
    coefficients = torch.tensor([0.2, -1.0, 3.0], dtype=torch.float64)
    assert gram.length(coefficients) == pytest.approx(float((coefficients @ deltas).norm()), rel=1e-12)
    assert len(list(row_ranges((500, 300)))) > 1


def test_the_norm_of_the_base_is_measured_when_asked_for() -> None:
    base = HeldTensor(torch.full((4,), 2.0), "base")
    inputs = [HeldTensor(torch.ones(4), "a"), HeldTensor(torch.arange(4.0), "b")]
    assert measure("w", inputs, None, base).base_norm == 4.0
    assert measure("w", inputs, None, None).base_norm is None


def test_an_angle_with_a_zero_vector_is_undefined() -> None:
    angles = angles_of(torch.tensor([[4.0, 0.0], [0.0, 0.0]], dtype=torch.float64))
    assert math.isnan(float(angles[0, 1]))


@pytest.mark.parametrize("shape", [(), (0,), (5,), (0, 3), (3, 0), (70_000, 3), (3, 70_000), (2, 3, 4)])
def test_row_ranges_cover_every_row_once(shape: tuple[int, ...]) -> None:
    ranges = list(row_ranges(shape))
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(shape[0] if shape else 1))


def test_values_too_large_for_their_squares_are_refused() -> None:
    huge = HeldTensor(torch.full((2,), 1e200, dtype=torch.float64), "huge")
    with pytest.raises(ValueError, match=r"tensor w: .*squares"):
        measure("w", [huge, huge], None, None)
