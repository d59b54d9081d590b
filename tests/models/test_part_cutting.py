"""Cut parts hold what padding fewer texts together gives, on either side."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.embedder import load_embedder
from models.part_cutting import as_many_parts, part_rows, part_shape, within_budget
from models.token_rows import TokenRows

TEXTS = [", ".join(map(str, range(3 + n, 3 + 2 * n))) for n in (1, 1, 2, 4, 7, 9)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_cut_part_is_what_the_texts_alone_are_padded_to(side, tiny_folder):
    embedder = load_embedder(tiny_folder)
    embedder.tokenizer.padding_side = side
    rows = TokenRows(embedder)
    read = [rows.row(text) for text in TEXTS]
    part = rows.padded(read) | {"modality": "text", "prompt_length": torch.tensor(2), "ranks": torch.arange(6)}
    for start, end in ((0, 2), (1, 5), (5, 6), (0, 6)):
        ours, theirs = part_rows(part, start, end), rows.padded(read[start:end])
        assert all(torch.equal(ours[key], value) for key, value in theirs.items() if isinstance(value, torch.Tensor))
        assert (ours["modality"], int(ours["prompt_length"])) == ("text", 2)
        assert ours["ranks"].tolist() == list(range(start, end))


def mask_of(lengths):
    return {
        "attention_mask": torch.tensor([[int(at < n) for at in range(max(lengths))] for n in lengths]),
        "place": torch.arange(len(lengths)),
    }


LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=12)


@given(LENGTHS, st.integers(1, 100))
def test_parts_are_within_the_budget_in_the_same_order(lengths, budget):
    parts = within_budget([mask_of(lengths)], budget)
    assert torch.cat([part["place"] for part in parts]).tolist() == list(range(len(lengths)))
    for part in parts:
        texts, tokens = part_shape(part)
        assert texts * tokens <= budget or texts == 1
        assert part["attention_mask"].sum(dim=1).tolist() == [lengths[at] for at in part["place"]]
        assert tokens == max(lengths[at] for at in part["place"])


def test_no_budget_and_parts_within_it_leave_them_as_they_are():
    part = mask_of([2, 3])
    assert within_budget([part], None)[0] is part
    assert within_budget([part], 6)[0] is part


@given(LENGTHS, st.data())
def test_as_many_parts_as_asked_for_in_the_same_order(lengths, data):
    count = data.draw(st.integers(1, len(lengths)))
    parts = as_many_parts([mask_of(lengths)], count)
    assert len(parts) == count
    assert torch.cat([part["place"] for part in parts]).tolist() == list(range(len(lengths)))
