"""Embeddings made ready: what is noise of their own rounding and what is geometry."""

import numpy as np
import pytest
import torch

from evaluation.centring import centred, checked, chunks, coincide, rounding

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def around(offset, spread, dtype, n=200, d=64):
    """Points at distance ``spread`` times the offset's length from it, stored in the dtype."""
    generator = torch.Generator().manual_seed(n)
    centre = torch.randn(d, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
    noise *= spread * torch.linalg.vector_norm(centre) / torch.linalg.vector_norm(noise, dim=1, keepdim=True)
    return (offset * (centre + noise)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [1.0, 1e-3, 300.0])
def test_rows_that_differ_by_rounding_are_one_point(dtype, offset):
    eps = torch.finfo(dtype).eps
    assert coincide(centred(around(offset, 0.0, dtype)))
    assert coincide(centred(around(offset, eps / 4, dtype))), "as a forward pass that rounds several times"
    assert not coincide(centred(around(offset, 4 * eps if eps > 1e-10 else 1e-14, dtype)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_narrow_cone_keeps_its_shape(dtype):
    x = around(1.0, 1e-4, dtype)
    exact = x.double() - x.double().mean(dim=0)
    torch.testing.assert_close(centred(x), exact, rtol=1e-9, atol=1e-15)


def test_the_rounding_of_a_dtype():
    assert rounding(torch.float32) == torch.finfo(torch.float32).eps
    assert rounding(torch.float64) == 16 * torch.finfo(torch.float64).eps


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.zeros(0, 3), "expected a matrix with one row a text, got shape"),
        (torch.tensor([[1.0], [float("nan")], [float("inf")]]), "got NaN or infinity in 2 of 3 rows"),
        (torch.full((2, 2), 1e200, dtype=torch.float64), "expected norms below 1e150"),
    ],
)
def test_what_is_no_matrix_of_finite_numbers_is_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        centred(rows)


def test_large_finite_numbers_whose_sum_overflows_are_finite():
    assert checked(torch.full((4, 2), 3e38)).shape == (4, 2)


def test_the_input_stays_as_it_is():
    x = np.ones((3, 2)) * [[1.0], [2.0], [3.0]]
    before = x.copy()
    centred(x)
    np.testing.assert_array_equal(x, before)


def test_chunks_cover_every_row_once():
    x = torch.arange(12.0).view(6, 2)
    assert torch.equal(torch.cat([chunk for _, chunk in chunks(x)]), x)
