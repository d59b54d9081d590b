from __future__ import annotations

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from models.info_nce import info_nce_loss


def units(embeddings: torch.Tensor) -> list[list[float]]:
    rows = [[float(x) for x in row] for row in embeddings.double()]
    return [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows]


def loss_of_the_paper(
    embeddings: torch.Tensor,
    pairs: list[int],
    roles: list[int],
    temperature: float,
    *,
    texts: list[int] | None = None,
    backwards: bool = False,
) -> float:
    """van den Oord et al. 2018, equation 4, with f = exp(cosine / T), as slow loops over Python floats."""
    z, n = units(embeddings), len(pairs)
    chosen, target = (1, 0) if backwards else (0, 1)
    texts = list(range(n)) if texts is None else texts
    text = {(pairs[i], roles[i]): texts[i] for i in range(n)}
    terms = []
    for i in range(n):
        if roles[i] != chosen:
            continue
        total = own = 0.0
        for j in range(n):
            if (roles[j] != 0) if backwards else (roles[j] == 0):
                continue
            density = math.exp(sum(x * y for x, y in zip(z[i], z[j], strict=True)) / temperature)
            if pairs[j] == pairs[i] and roles[j] == target:
                own = density
            elif texts[j] in (text[pairs[i], 0], text[pairs[i], 1]):
                continue  # says the same as the anchor or the positive
            elif roles[j] == target and text[pairs[j], chosen] == text[pairs[i], chosen]:
                continue  # belongs to the same text
            total += density
        terms.append(-math.log(own / total))
    return sum(terms) / len(terms)


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, list[int], list[int], list[int], float]:
    pairs, negatives = draw(st.integers(1, 4)), draw(st.integers(0, 2))
    rows = draw(st.permutations([(pair, role) for pair in range(pairs) for role in range(2 + negatives)]))
    texts = draw(st.lists(st.integers(0, 9), min_size=len(rows), max_size=len(rows)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    table = torch.randn(10, 5, generator=generator, dtype=torch.float64)
    numbers, roles = [pair * 7 - 3 for pair, _ in rows], [role for _, role in rows]
    return table[texts], numbers, roles, texts, draw(st.sampled_from([0.05, 0.1, 1.0]))


@given(batches(), st.booleans())
@settings(max_examples=60)
def test_equals_the_papers_loops(
    batch: tuple[torch.Tensor, list[int], list[int], list[int], float], told: bool
) -> None:
    embeddings, pairs, roles, texts, temperature = batch
    given_texts = texts if told else None
    forth, back = (
        loss_of_the_paper(embeddings, pairs, roles, temperature, texts=given_texts, backwards=each)
        for each in (False, True)
    )
    rows = {"texts": torch.tensor(texts)} if told else {}
    numbers, kinds = torch.tensor(pairs), torch.tensor(roles)
    ours = info_nce_loss(embeddings, numbers, kinds, temperature=temperature, **rows)
    both = info_nce_loss(embeddings, numbers, kinds, temperature=temperature, symmetric=True, **rows)
    assert ours.item() == pytest.approx(forth, rel=1e-9, abs=1e-10)
    assert both.item() == pytest.approx((forth + back) / 2, rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("columns", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [False, True])
def test_equals_sentence_transformers(columns: int, symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(columns)
    tables = [torch.randn(5, 8, generator=generator) for _ in range(columns)]
    # its losses take a model to embed with, which is not asked for embeddings that are there
    form = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"} if symmetric else {}
    theirs = MultipleNegativesRankingLoss(SimpleNamespace(), scale=1 / 0.07, **form)  # type: ignore[arg-type]
    expected = theirs.compute_loss_from_embeddings(tables, torch.empty(0))
    ours = info_nce_loss(
        torch.cat(tables),
        torch.arange(5).repeat(columns),
        torch.arange(columns).repeat_interleave(5),
        temperature=0.07,
        symmetric=symmetric,
    )
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_rows_may_stand_in_any_order() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    pairs, roles = torch.arange(3).repeat_interleave(3), torch.arange(3).repeat(3)
    order = torch.randperm(9, generator=generator)
    torch.testing.assert_close(
        info_nce_loss(embeddings[order] * 3, pairs[order], roles[order]), info_nce_loss(embeddings, pairs, roles)
    )


@pytest.mark.parametrize("symmetric", [False, True])
def test_gradient_is_that_of_finite_differences(symmetric: bool) -> None:
    embeddings = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    pairs, roles = torch.arange(3).repeat_interleave(3), torch.arange(3).repeat(3)
    texts = torch.tensor([0, 1, 2, 0, 4, 1, 6, 4, 8])
    assert torch.autograd.gradcheck(
        lambda z: info_nce_loss(z, pairs, roles, texts=texts, temperature=0.5, symmetric=symmetric), (embeddings,)
    )


def test_what_is_known_to_belong_together_is_not_pushed_apart() -> None:
    """Two pairs of one anchor: neither positive is a negative of the other's pair, so nothing is left to be learned."""
    embeddings = torch.randn(4, 3, generator=torch.Generator().manual_seed(2), requires_grad=True)
    pairs, roles, texts = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), torch.tensor([5, 6, 5, 7])
    loss = info_nce_loss(embeddings, pairs, roles, texts=texts)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(embeddings.grad).all()
    assert info_nce_loss(embeddings, pairs, roles) > 0.01


def test_autocast_and_small_precisions_are_computed_in_float32() -> None:
    embeddings = torch.randn(6, 16, generator=torch.Generator().manual_seed(3)).bfloat16()
    pairs, roles = torch.arange(3).repeat_interleave(2), torch.arange(2).repeat(3)
    plain = info_nce_loss(embeddings.float(), pairs, roles, temperature=0.02)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = info_nce_loss(embeddings, pairs, roles, temperature=0.02)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, plain)


def test_nothing_waits_for_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of the device meta have no values: asking for one, or for a size that depends on one, fails."""
    monkeypatch.setattr("models.cosines.torch.autocast", lambda *_, **__: nullcontext())  # which knows no meta
    embeddings = torch.empty(6, 4, device="meta", requires_grad=True)
    numbers = torch.empty(6, dtype=torch.long, device="meta")
    info_nce_loss(embeddings, numbers, numbers, texts=numbers, symmetric=True).backward()
    assert embeddings.grad is not None


@pytest.mark.parametrize(
    ("pairs", "roles", "message"),
    [
        ([0, 0, 1, 1], [0, 1, 0, 2], "roles: expected one positive a pair, got 0"),
        ([0, 0, 0, 1], [0, 1, 1, 1], "roles: expected one anchor a pair, got 0"),
        ([0, 0, 0, 0], [0, 1, 0, 1], "roles: expected one anchor a pair, got 2"),
        ([0, 0, 1], [0, 1, 0], r"pairs: expected one a row \(4\), got 3"),
        ([0, 0, 1, 1], [0, 1, 0], r"roles: expected one a row \(4\), got 3"),
    ],
)
def test_what_are_no_pairs_is_refused(pairs: list[int], roles: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        info_nce_loss(torch.ones(4, 3), torch.tensor(pairs), torch.tensor(roles))


def test_a_temperature_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature: expected a number above 0"):
        info_nce_loss(torch.ones(2, 3), torch.tensor([0, 0]), torch.tensor([0, 1]), temperature=0.0)
