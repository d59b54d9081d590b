import math

import pytest
import torch

from merging.gram import Gram, add_products, angles_of, mirrored, pairs_to_measure_again, small_angle


def test_products_of_chunks_add_up_to_the_gram() -> None:
    vectors = torch.randn(4, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    products = torch.zeros(4, 4, dtype=torch.float64)
    for chunk in vectors.split(300, dim=1):
        add_products(chunk, products)
    torch.testing.assert_close(mirrored(products), vectors @ vectors.T, rtol=1e-12, atol=0)


def test_lengths_are_those_of_the_sums() -> None:
    vectors = torch.randn(2, 3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    products = vectors @ vectors.mT
    gram = Gram(products, angles_of(products))
    torch.testing.assert_close(gram.norms, vectors.norm(dim=2), rtol=1e-12, atol=0)
    coefficients = torch.tensor([[0.2, -1.0, 3.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    expected = (coefficients.unsqueeze(1) @ vectors).norm(dim=2).squeeze(1)
    torch.testing.assert_close(gram.lengths(coefficients), expected, rtol=1e-12, atol=0)


def test_an_angle_with_a_zero_vector_is_undefined() -> None:
    angles = angles_of(torch.tensor([[[4.0, 0.0], [0.0, 0.0]]], dtype=torch.float64))
    assert math.isnan(float(angles[0, 0, 1]))
    assert float(angles[0, 0, 0]) == 0


def test_pairs_close_to_zero_and_to_pi_are_measured_again() -> None:
    near = 1 - 1e-10
    products = torch.tensor([[1, near, 0.5], [near, 1, -near], [0.5, -near, 1]], dtype=torch.float64)
    assert pairs_to_measure_again(products) == [(0, 1), (1, 2)]


@pytest.mark.parametrize("theta", [1e-9, 1e-4, 0.3])
def test_a_small_angle_follows_from_the_gap_of_unit_vectors(theta: float) -> None:
    square = (2 * math.sin(theta / 2)) ** 2
    assert small_angle(square, opposite=False) == pytest.approx(theta, rel=1e-12)
    assert small_angle(square, opposite=True) == pytest.approx(math.pi - theta, rel=1e-12)
