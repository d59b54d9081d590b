import torch

from merging.gram import Gram
from merging.linear import linear


def test_the_coefficients_are_the_weights_whatever_the_angles() -> None:
    eye = torch.eye(3, dtype=torch.float64)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    solution = linear(Gram(eye, eye, None), weights, norm="interpolate", antipodal="error")
    assert torch.equal(solution.coefficients, weights)
    assert solution.note is None
