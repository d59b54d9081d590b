"""A batch holds each text once, with its targets in the order in which the texts came."""

import pytest
import torch

from data.training_texts import Item
from lightning_app.batch import make_batch
from models.embedder import encode, load_embedder
from models.token_rows import TokenRows

TEXTS = ["1, 2, 3", "7", "2, 4, 8, 16, 32, 64", "5", "1, 1, 2, 3, 5, 8, 13, 21"]


@pytest.mark.parametrize("batching", ["sorted", "padded"])
@pytest.mark.parametrize("budget", [None, 1, 40])
def test_every_text_is_found_where_the_order_says(batching, budget, tiny_folder):
    embedder = load_embedder(tiny_folder)
    items = [Item(text, label, 10 + label, label % 2) for label, text in enumerate(TEXTS)]
    batch = make_batch(items, TokenRows(embedder), batching=batching, budget=budget)
    with torch.no_grad():
        rows = torch.cat([embedder(dict(part))["sentence_embedding"] for part in batch.parts])
    torch.testing.assert_close(rows[batch.order], encode(embedder, TEXTS), atol=1e-6, rtol=0)
    assert batch.targets.tolist() == [[label, 10 + label, label % 2] for label in range(5)]
    shapes = [part["input_ids"].shape for part in batch.parts]
    assert batch.padded == sum(texts * tokens for texts, tokens in shapes)
    assert batch.tokens == sum(int(part["attention_mask"].sum()) for part in batch.parts) <= batch.padded
    assert all(budget is None or texts == 1 or texts * tokens <= budget for texts, tokens in shapes)
    if budget is None:
        assert len(shapes) == 1 or batching == "sorted"
    if budget == 1:
        assert len(shapes) == len(TEXTS)
