"""Batch: one rank's share of a batch, tokenised and in parts of like length.

Dimension names: b texts a rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from data.training_texts import Item
from models.packing import packed_rows
from models.part_cutting import within_budget
from models.partition import partition
from models.token_rows import Row, TokenRows

Batching = Literal["sorted", "padded", "packed"]
PACKED = 1024
"""Tokens of a row of packed texts: without a kernel for it, attention computes their square."""


class Batch(NamedTuple):
    """One rank's share of a batch; tensors that a step needs on its device, counts that it does not."""

    parts: list[dict[str, Any]]
    """Features of texts of like length, each as ``preprocess`` gives them, or packed."""
    order: Tensor
    """(b,): the place in the parts, laid below each other, of each text."""
    targets: Tensor
    """(b, 3): label, place in the training texts, role (see `data.training_texts.Item`)."""
    tokens: int
    """Tokens of the texts."""
    padded: int
    """Tokens of the parts, padding included."""


def make_batch(items: Sequence[Item], rows: TokenRows, *, batching: Batching, budget: int | None) -> Batch:
    """Texts with their targets -> a batch.

    Args:
        items: b of them.
        rows: reads the texts.
        batching: see `make_parts`.
        budget: see `make_parts`.
    """
    read = [rows.row(item.text) for item in items]
    parts, places = make_parts(read, rows, batching=batching, budget=budget)
    order = torch.empty(len(read), dtype=torch.long)
    order[torch.tensor(places)] = torch.arange(len(read))
    return Batch(
        parts=parts,
        order=order,
        targets=torch.tensor([(item.label, item.place, item.role) for item in items]),
        tokens=sum(len(row["input_ids"]) for row in read),
        padded=sum(part["input_ids"].numel() for part in parts),
    )


def make_parts(
    read: Sequence[Row], rows: TokenRows, *, batching: Batching, budget: int | None
) -> tuple[list[dict[str, Any]], list[int]]:
    """Rows -> the features of the parts, and the place in ``read`` of each text in them.

    Args:
        read: what ``rows`` read.
        rows: pads them.
        batching: ``sorted``: parts of like length; ``padded``: all together; ``packed``: end to end, without padding.
        budget: most tokens of a part, padding included; None: no limit.
    """
    if batching == "packed":
        most = PACKED if budget is None else min(budget, PACKED)
        groups = partition([len(row["input_ids"]) for row in read], overhead=PACKED**2, budget=most)
        return [packed_rows([read[place] for place in part]) for part in groups], [p for part in groups for p in part]
    whole = [list(range(len(read)))]
    cut = whole if batching == "padded" else partition([len(row["input_ids"]) for row in read], budget=budget)
    parts = within_budget([rows.padded([read[place] for place in part]) for part in cut], budget)
    return parts, [place for part in cut for place in part]
