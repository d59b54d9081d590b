from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.losses import supervised_contrastive_loss
from models.matryoshka import matryoshka_loss
from models.prefix_lengths import check_dimensions
from tests.models.test_losses import loss_of_the_paper

LABELS = [0, 1, 0, 1, 2]


def by_label(embeddings: torch.Tensor) -> torch.Tensor:
    return supervised_contrastive_loss(embeddings, torch.tensor(LABELS), temperature=0.3)


@given(
    st.sets(st.integers(1, 7), max_size=4), st.integers(0, 2**31), st.lists(st.floats(0.1, 3), min_size=5, max_size=5)
)
@settings(max_examples=40)
def test_equals_the_papers_sum_over_lengths(lengths: set[int], seed: int, numbers: list[float]) -> None:
    """Kusupati et al. 2022, equation 1, c_m divided by their sum; each term by the loops of its own paper."""
    embeddings = torch.randn(5, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    dimensions = sorted(lengths)
    weights = numbers[: len(dimensions) + 1]
    expected = 0.0
    for length, weight in zip([*dimensions, 8], weights, strict=True):
        prefix = torch.tensor([[float(row[k]) for k in range(length)] for row in embeddings], dtype=torch.float64)
        expected += weight / sum(weights) * loss_of_the_paper(prefix, LABELS, 0.3)
    ours = matryoshka_loss(by_label, embeddings, dimensions, weights=weights)
    assert ours.item() == pytest.approx(expected, rel=1e-9)


def test_no_length_leaves_the_loss_and_equal_lengths_count_alike() -> None:
    embeddings = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(matryoshka_loss(by_label, embeddings, ()), by_label(embeddings))
    mean = (by_label(embeddings[:, :2]) + by_label(embeddings[:, :5]) + by_label(embeddings)) / 3
    torch.testing.assert_close(matryoshka_loss(by_label, embeddings, (2, 5)), mean)


def test_gradient_is_that_of_finite_differences() -> None:
    embeddings = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: matryoshka_loss(by_label, z, (2, 4)), (embeddings,))


@pytest.mark.parametrize("dimensions", [(4, 2), (2, 2), (0, 2), (-1,)])
def test_lengths_that_do_not_ascend_are_refused(dimensions: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="--matryoshka: expected ascending numbers above 0, got"):
        check_dimensions(dimensions, name="--matryoshka")


def test_lengths_from_the_whole_on_are_refused() -> None:
    check_dimensions((2, 7), 8)
    with pytest.raises(
        ValueError, match=r"dimensions: expected numbers below the model's dimension 8 .* got 2 8 9; drop 8 9"
    ):
        matryoshka_loss(by_label, torch.ones(5, 8), (2, 8, 9))


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, math.nan], [1.0, 1.0, 1.0]])
def test_weights_that_do_not_fit_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights: expected 2 positive numbers"):
        matryoshka_loss(by_label, torch.ones(5, 8), (2,), weights=weights)
