import math

import pytest
import torch
from torch import Tensor

from merging.measuring import measure
from merging.reading import OpenFiles, Reader, Scratch
from merging.request import Request
from merging.schedule import Settings
from merging.task import Measurement
from merging.tensors import held_tasks
from merging.workers import Workers
from tests.merging import oracle


def measured(inputs: list[Tensor], base: Tensor | None = None, threads: int = 1, **asked: str) -> Measurement:
    request = Request(inputs=[""] * len(inputs), method="karcher", settings=Settings(), **asked)  # type: ignore[arg-type]
    tasks = held_tasks(request, [{"w": x} for x in inputs], None if base is None else {"w": base})
    with Workers(threads) as workers, OpenFiles() as files:
        return measure(tasks, Reader(files, Scratch()), workers)[0]


def pair(theta: float, ratio: float, size: int = 100_000) -> tuple[Tensor, Tensor]:
    u, v = torch.randn(2, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u = u / u.norm()
    v = v - (v @ u) * u
    return u, ratio * (math.cos(theta) * u + math.sin(theta) * v / v.norm())


@pytest.mark.parametrize("ratio", [1.0, 10.0, 1e-3])
@pytest.mark.parametrize("theta", [1e-7, 1e-6, 1e-5, 1e-4, 2e-4, 1e-2, 1.5, math.pi - 1e-2, math.pi - 1e-5])
def test_angles_are_right_from_nearly_parallel_to_nearly_opposite(theta: float, ratio: float) -> None:
    found = measured(list(pair(theta, ratio)))
    assert found.angles is not None
    small, angle = min(theta, math.pi - theta), float(found.angles[0, 1])
    assert min(angle, math.pi - angle) == pytest.approx(small, rel=1e-6)
    assert (angle > 1) == (theta > 1)


def test_float32_angles_are_those_of_the_stored_values() -> None:
    a, b = (x.float() for x in pair(1e-4, 10.0))
    found = measured([a, b])
    assert found.angles is not None
    assert float(found.angles[0, 1]) == pytest.approx(oracle.angle_between(a, b), rel=1e-6)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_gram_is_that_of_differences_from_the_origin_over_several_blocks(threads: int) -> None:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(4000, 300, generator=generator)
    inputs = [base + 1e-3 * torch.randn(4000, 300, generator=generator) for _ in range(3)]
    found = measured(inputs, base, threads)
    deltas = torch.stack([(x.double() - base.double()).flatten() for x in inputs])
    torch.testing.assert_close(found.products, deltas @ deltas.T, rtol=1e-12, atol=1e-15)
    assert not found.equal


def test_equal_inputs_are_noticed_and_have_no_angle_between_them() -> None:
    x = torch.randn(5, 7)
    found = measured([x, x.clone(), x])
    assert found.equal
    torch.testing.assert_close(found.angles, torch.zeros(3, 3, dtype=torch.float64), rtol=0, atol=0)


def test_the_norm_of_the_base_is_measured_when_asked_for() -> None:
    inputs = [torch.ones(4), torch.arange(4.0)]
    assert measured(inputs, torch.full((4,), 2.0), norm="base", space="weight").base_norm == 4.0
    assert measured(inputs).base_norm is None


def test_values_too_large_for_their_squares_are_refused() -> None:
    huge = torch.full((2,), 1e200, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"tensor w: .*squares"):
        measured([huge, -huge])
