from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.gram_distance import gram_distance


def cosine(x: torch.Tensor, y: torch.Tensor) -> float:
    a, b = [float(v) for v in x], [float(v) for v in y]
    dot = sum(p * q for p, q in zip(a, b, strict=True))
    return dot / math.sqrt(sum(p * p for p in a) * sum(q * q for q in b))


@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 2**31), st.booleans())
@settings(max_examples=50)
def test_equals_the_mean_over_pairs(n: int, e: int, seed: int, tied: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(n, e, generator=generator, dtype=torch.float64)
    if tied:
        x[1], y[1] = x[0], y[0]
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    expected = sum((cosine(x[i], x[j]) - cosine(y[i], y[j])) ** 2 for i, j in pairs) / len(pairs)
    assert gram_distance(x, y).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_is_zero_for_a_rotation_and_rows_of_other_lengths() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))
    lengths = torch.rand(5, 1, generator=generator, dtype=torch.float64) + 0.5
    assert gram_distance(x @ rotation * lengths, x).item() == pytest.approx(0, abs=1e-20)


def test_is_four_where_every_cosine_has_turned_round() -> None:
    together, apart = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert gram_distance(together, apart).item() == 4


def test_the_batches_mean_is_that_of_all_texts() -> None:
    """What makes it a loss for batches: the mean over all batches of 3 out of 6 rows is the value of the 6."""
    from itertools import combinations

    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    parts = [gram_distance(x[list(rows)], y[list(rows)]) for rows in combinations(range(6), 3)]
    torch.testing.assert_close(torch.stack(parts).mean(), gram_distance(x, y))


def test_gradient_is_that_of_finite_differences_and_none_flows_into_the_base() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(5, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    y = torch.randn(5, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: gram_distance(z, y.detach()), (x,))
    gram_distance(x, y).backward()
    assert y.grad is None


def test_gradient_is_finite_at_the_base_itself() -> None:
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(3), requires_grad=True)
    gram_distance(x, x.detach().clone()).backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_autocast_does_not_round_the_similarities() -> None:
    generator = torch.Generator().manual_seed(4)
    x, y = (torch.randn(6, 16, generator=generator).bfloat16() for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gram_distance(x, y)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, gram_distance(x.float(), y.float()))


def test_nothing_waits_for_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of the device meta have no values: asking for one, or for a size that depends on one, fails."""
    monkeypatch.setattr("models.cosines.torch.autocast", lambda *_, **__: nullcontext())  # which knows no meta
    embeddings = torch.empty(6, 4, device="meta", requires_grad=True)
    gram_distance(embeddings, torch.empty(6, 3, device="meta")).backward()
    assert embeddings.grad is not None


@pytest.mark.parametrize(("rows", "base"), [(3, 2), (1, 1), (0, 0)])
def test_other_rows_or_fewer_than_two_are_refused(rows: int, base: int) -> None:
    with pytest.raises(ValueError, match=f"base: expected one row .* at least 2 embeddings, got {base} for {rows}"):
        gram_distance(torch.ones(rows, 3), torch.ones(base, 3))
