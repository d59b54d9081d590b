from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.losses import supervised_contrastive_loss


def loss_of_the_paper(embeddings: torch.Tensor, labels: list[int], temperature: float) -> float:
    """Khosla et al. 2020, equation 2, as slow loops over Python floats."""
    rows = [[float(x) for x in row] for row in embeddings.double()]
    units = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows]
    terms = []
    for i, z_i in enumerate(units):
        others = [a for a in range(len(units)) if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        if not positives:
            continue

        def dot(a: int, z: list[float] = z_i) -> float:
            return sum(x * y for x, y in zip(z, units[a], strict=True))

        denominator = sum(math.exp(dot(a) / temperature) for a in others)
        inner = sum(math.log(math.exp(dot(p) / temperature) / denominator) for p in positives)
        terms.append(-inner / len(positives))
    return sum(terms) / len(terms)


batches = (
    st.integers(2, 7)
    .flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.lists(st.integers(0, 2), min_size=n, max_size=n),
            st.integers(0, 2**31),
            st.sampled_from([0.07, 0.1, 1.0]),
        )
    )
    .filter(lambda batch: len(set(batch[1])) < batch[0])
)


@given(batches)
@settings(max_examples=60, deadline=None)
def test_equals_the_papers_loops(batch: tuple[int, list[int], int, float]) -> None:
    n, labels, seed, temperature = batch
    embeddings = torch.randn(n, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ours = supervised_contrastive_loss(embeddings, torch.tensor(labels), temperature=temperature)
    assert ours.item() == pytest.approx(loss_of_the_paper(embeddings, labels, temperature), rel=1e-10, abs=1e-12)


@given(batches)
@settings(max_examples=40, deadline=None)
def test_names_and_order_of_labels_do_not_matter(batch: tuple[int, list[int], int, float]) -> None:
    n, labels, seed, temperature = batch
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(n, 5, generator=generator, dtype=torch.float64)
    names = torch.tensor(labels)
    expected = supervised_contrastive_loss(embeddings, names, temperature=temperature)
    renamed = supervised_contrastive_loss(embeddings, 100 - 7 * names, temperature=temperature)
    order = torch.randperm(n, generator=generator)
    permuted = supervised_contrastive_loss(embeddings[order], names[order], temperature=temperature)
    scaled = supervised_contrastive_loss(embeddings * 3.5, names, temperature=temperature)
    for other in (renamed, permuted, scaled):
        torch.testing.assert_close(other, expected, rtol=1e-10, atol=1e-12)


def test_gradient_is_that_of_finite_differences() -> None:
    embeddings = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1, 1, 2])
    assert torch.autograd.gradcheck(lambda z: supervised_contrastive_loss(z, labels), (embeddings,))


def test_an_anchor_without_a_positive_is_a_negative_only() -> None:
    embeddings = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([5, 5, 9])
    ours = supervised_contrastive_loss(embeddings, labels)
    assert ours.item() == pytest.approx(loss_of_the_paper(embeddings, labels.tolist(), 0.1), rel=1e-5)
    assert torch.isfinite(ours)


def test_separated_labels_cost_less_than_mixed_ones() -> None:
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    good = supervised_contrastive_loss(embeddings, torch.tensor([0, 0, 1, 1]))
    bad = supervised_contrastive_loss(embeddings, torch.tensor([0, 1, 0, 1]))
    assert good < 0.01 < 5 < bad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_precisions_are_computed_in_float32(dtype: torch.dtype) -> None:
    embeddings = torch.randn(8, 16, generator=torch.Generator().manual_seed(2)).to(dtype)
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    ours = supervised_contrastive_loss(embeddings, labels, temperature=0.02)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, supervised_contrastive_loss(embeddings.float(), labels, temperature=0.02))


def test_autocast_does_not_round_the_similarities() -> None:
    embeddings = torch.randn(8, 16, generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    plain = supervised_contrastive_loss(embeddings, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = supervised_contrastive_loss(embeddings, labels)
    assert torch.equal(inside, plain)


def test_tiny_temperature_stays_finite() -> None:
    embeddings = torch.randn(6, 4, generator=torch.Generator().manual_seed(4), requires_grad=True)
    loss = supervised_contrastive_loss(embeddings, torch.tensor([0, 0, 1, 1, 2, 2]), temperature=1e-3)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(embeddings.grad).all()


@pytest.mark.parametrize("labels", [[0, 1, 2], [4]])
def test_a_batch_without_positives_is_refused(labels: list[int]) -> None:
    with pytest.raises(ValueError, match="at least two texts of one label"):
        supervised_contrastive_loss(torch.randn(len(labels), 3), torch.tensor(labels))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature: expected a number above 0"):
        supervised_contrastive_loss(torch.randn(2, 3), torch.tensor([0, 0]), temperature=temperature)


def test_nothing_waits_for_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of the device meta have no values: asking for one, or for a size that depends on one, fails."""
    monkeypatch.setattr("models.cosines.torch.autocast", lambda *_, **__: nullcontext())  # which knows no meta
    embeddings = torch.empty(6, 4, device="meta", requires_grad=True)
    supervised_contrastive_loss(embeddings, torch.empty(6, dtype=torch.long, device="meta")).backward()
    assert embeddings.grad is not None
