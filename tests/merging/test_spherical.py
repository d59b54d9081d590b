import math

import pytest
import torch

from merging.gram import Gram, angles_of
from merging.spherical import karcher, slerp

Float = torch.float64


def gram_of(*vectors: list[float]) -> Gram:
    matrix = torch.tensor(vectors, dtype=Float)
    return Gram(matrix @ matrix.T, angles_of(matrix @ matrix.T), None)


def test_a_quarter_circle_is_divided_evenly() -> None:
    weights = torch.tensor([2 / 3, 1 / 3], dtype=Float)
    solution = slerp(gram_of([1, 0], [0, 1]), weights, norm="interpolate", antipodal="error")
    torch.testing.assert_close(solution.coefficients, torch.tensor([math.cos(math.pi / 6), 0.5], dtype=Float))
    assert solution.note is None


def test_the_mean_of_the_axes_is_the_diagonal() -> None:
    weights = torch.full((3,), 1 / 3, dtype=Float)
    solution = karcher(gram_of([1, 0, 0], [0, 1, 0], [0, 0, 1]), weights, norm="interpolate", antipodal="error")
    torch.testing.assert_close(solution.coefficients, torch.full((3,), 3**-0.5, dtype=Float))
    assert solution.note is None


def test_the_karcher_mean_is_where_the_tangents_cancel() -> None:
    vectors = torch.randn(5, 4, dtype=Float, generator=torch.Generator().manual_seed(2)) + 1.0
    weights = torch.tensor([0.1, 0.1, 0.2, 0.25, 0.35], dtype=Float)
    solution = karcher(gram_of(*vectors.tolist()), weights, norm="interpolate", antipodal="error")
    mean = solution.coefficients @ vectors
    mean = mean / mean.norm()
    total = torch.zeros(4, dtype=Float)
    for weight, vector in zip(weights, vectors, strict=True):
        unit = vector / vector.norm()
        side = unit - (unit @ mean) * mean
        total += weight * torch.acos((unit @ mean).clamp(-1, 1)) * side / side.norm()
    assert float(total.norm()) < 1e-10


def test_an_input_of_weight_zero_has_no_say() -> None:
    with_third = karcher(
        gram_of([1, 0], [0, 2], [-1, -1]), torch.tensor([0.5, 0.5, 0], dtype=Float), norm="geometric", antipodal="error"
    )
    without = karcher(
        gram_of([1, 0], [0, 2]), torch.tensor([0.5, 0.5], dtype=Float), norm="geometric", antipodal="error"
    )
    torch.testing.assert_close(with_third.coefficients, torch.cat([without.coefficients, torch.zeros(1, dtype=Float)]))


def test_inputs_beyond_ninety_degrees_of_their_mean_are_reported() -> None:
    wide = [[math.cos(x), math.sin(x)] for x in (0.0, 0.1, 1.9)]
    weights = torch.tensor([0.49, 0.49, 0.02], dtype=Float)
    assert karcher(gram_of(*wide), weights, norm="interpolate", antipodal="error").note == "not unique"


def test_a_step_short_of_antipodal_is_merged_and_a_step_beyond_is_not() -> None:
    half = torch.tensor([0.5, 0.5], dtype=Float)
    for gap, determined in ((1.1e-3, True), (0.9e-3, False)):
        gram = gram_of([1, 0], [math.cos(math.pi - gap), math.sin(math.pi - gap)])
        solution = slerp(gram, half, norm="interpolate", antipodal="linear")
        assert (solution.note is None) == determined


@pytest.mark.parametrize("function", [slerp, karcher])
def test_two_zero_inputs_keep_the_weights(function: type) -> None:
    half = torch.tensor([0.5, 0.5], dtype=Float)
    solution = function(gram_of([0, 0], [0, 0]), half, norm="interpolate", antipodal="error")
    assert torch.equal(solution.coefficients, half)
    assert solution.note == "zero"
