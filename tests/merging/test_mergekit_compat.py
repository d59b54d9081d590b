"""Numbers printed by mergekit 0.1.5, in float64, for vectors small enough to follow by hand."""

import pytest
import torch
from torch import Tensor

from merging import mergekit_compat
from merging.options import Options
from merging.solution import Solution
from tests.merging import oracle

FIRST, SECOND, THIRD = torch.tensor([[3, 1, 0, 2], [1, 2, -1, 0.5], [-1, 1, 4, 1]], dtype=torch.float64)
NEAR = FIRST + torch.tensor([0, 0, 0.1, 0], dtype=torch.float64)
ZERO = torch.zeros(4, dtype=torch.float64)
BASE = torch.ones(4, dtype=torch.float64)
WIDE = torch.tensor([[1, 0, 0.1], [-0.9, 0.3, 0.2], [0.2, -1, 0.4]], dtype=torch.float64)


def solved(name: str, vectors: list[Tensor], weights: list[float]) -> Solution:
    told = torch.tensor([weights], dtype=torch.float64)
    return getattr(mergekit_compat, name)(oracle.gram_of(vectors), told, Options())


def check(name: str, vectors: list[Tensor], weights: list[float], expected: list[float], base: Tensor | None) -> None:
    inputs = vectors if base is None else [vector - base for vector in vectors]
    got = solved(name, inputs, weights).coefficients[0] @ torch.stack(inputs)
    merged = got if base is None else base + got
    torch.testing.assert_close(merged, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("vectors", "expected"),
    [
        ([FIRST, SECOND], [2.58492644155, 1.4250300071, -0.33803271595, 1.66694550837]),
        ([ZERO, SECOND], [0.45399049974, 0.907980999479, -0.45399049974, 0.22699524987]),
        ([1e-9 * FIRST, SECOND], [0.453990501771, 0.907980999087, -0.453990499098, 0.226995251331]),
        ([FIRST, NEAR], [3.0, 1.0, 0.03, 2.0]),  # above |cos| = 0.9995: linear
        ([FIRST, -2 * FIRST], [0.3, 0.1, 0.0, 0.2]),
    ],
)
def test_slerp(vectors: list[Tensor], expected: list[float]) -> None:
    check("slerp", vectors, [0.7, 0.3], expected, None)


@pytest.mark.parametrize(
    ("vectors", "expected"),
    [
        ([FIRST, SECOND], [2.58492644155, 1.4250300071, -0.33803271595, 1.66694550837]),
        ([FIRST, NEAR], [3.00022490911, 1.0000749697, 0.0300032487134, 2.0001499394]),
        ([FIRST, 2 * FIRST], [3.9, 1.3, 0.0, 2.6]),
        ([FIRST, ZERO], [2.67301957257, 0.891006524188, 0.0, 1.78201304838]),
    ],
)
def test_nuslerp(vectors: list[Tensor], expected: list[float]) -> None:
    check("nuslerp", vectors, [0.7, 0.3], expected, None)


@pytest.mark.parametrize(
    ("vectors", "expected"),
    [
        ([FIRST, SECOND, THIRD], [1.64051636248, 2.35597185713, 1.1093812938, 1.73583719387]),
        ([FIRST, SECOND, 1e-6 * THIRD], [1.38000135053, 1.22552995491, -0.459317702838, 0.843447949883]),
        ([ZERO, ZERO, 1e-6 * THIRD], [0.0, 0.0, 0.0, 0.0]),
        (list(WIDE), [0.0942403120623, -0.495302951257, 0.890496194636]),  # ten steps, not converged
    ],
)
def test_karcher(vectors: list[Tensor], expected: list[float]) -> None:
    check("karcher", vectors, [1 / 3] * 3, expected, None)


@pytest.mark.parametrize(
    ("vectors", "weights", "expected", "base"),
    [
        ([FIRST, SECOND, THIRD], [0.5, 0.3, 0.2], [2.24746943444, 1.98489909349, 0.300599848633, 1.76550572645], None),
        ([FIRST, SECOND, THIRD], [0.5, 0.3, 0.2], [2.6903517781, 1.74440920628, -0.703242574511, 1.78834714946], BASE),
        (
            [1e-8 * FIRST, SECOND, THIRD],
            [0.5, 0.3, 0.2],
            [0.988975842394, 0.991178322159, 0.160917590469, 0.802351288192],
            None,
        ),
        ([FIRST, -FIRST], [0.5, 0.5], [0.0, 0.0, 0.0, 0.0], None),
    ],
)
def test_multislerp(vectors: list[Tensor], weights: list[float], expected: list[float], base: Tensor | None) -> None:
    check("multislerp", vectors, weights, expected, base)


def test_multislerp_of_three_balanced_inputs_is_refused_where_mergekit_raises() -> None:
    solution = solved("multislerp", [FIRST, -FIRST, ZERO], [1 / 3] * 3)
    assert bool(solution.refused)
    assert "--compat" in solution.reason
    assert not bool(solved("multislerp", [FIRST, SECOND, ZERO], [1 / 3] * 3).refused)


@pytest.mark.parametrize(
    ("vectors", "expected"),
    [
        ([FIRST, SECOND, THIRD], [1.0, -1.51939321468, 1.0, -0.25969660734]),
        ([BASE + FIRST, BASE - 2 * FIRST], [1.0, 1.0, 1.0, 1.0]),
        ([BASE + FIRST, BASE + torch.tensor([-3.0, -1, 0, 1])], [1.0, 1.0, 1.0, -4.44257963893]),
    ],
)
def test_model_stock(vectors: list[Tensor], expected: list[float]) -> None:
    check("model_stock", vectors, [1 / len(vectors)] * len(vectors), expected, BASE)


def test_model_stock_takes_products_of_norms_below_a_millionth_for_a_millionth() -> None:
    small = [1e-4 * vector for vector in (FIRST, SECOND, THIRD)]
    got = solved("model_stock", small, [1 / 3] * 3).coefficients[0] @ torch.stack(small)
    expected = 1e-4 * torch.tensor([0.0342019543975, 0.0456026058626, 0.0342019543975, 0.0399022801312]).double()
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
