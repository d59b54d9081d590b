"""Parts of a batch cut smaller: to a budget of tokens, or to a number of parts.

Dimension names: n texts of a part, t tokens of its longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from models.packing import MASK, packed_share

Features = dict[str, Any]


def part_shape(part: Features) -> tuple[int, int]:
    """Texts and tokens of the longest, (n, t), of features as ``preprocess`` gives them, or packed."""
    texts, tokens = part[MASK if MASK in part else "attention_mask"].shape
    return int(texts), int(tokens)


def part_rows(part: Features, start: int, end: int) -> Features:
    """The texts from ``start`` up to ``end``, padded to the longest of them only.

    Tensors of n rows are cut; of those, tensors of t columns lose the columns that are padding in every row, on either
    side. Everything else is as it was. Of a packed part the texts stay packed.
    """
    if MASK in part:
        return packed_share(part, start, end)
    texts, tokens = part_shape(part)
    columns = part["attention_mask"][start:end].any(dim=0).nonzero().flatten().tolist()
    first, last = columns[0], columns[-1] + 1

    def cut(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.ndim or len(value) != texts:
            return value
        rows = value[start:end]
        return rows[:, first:last] if rows.ndim > 1 and rows.shape[1] == tokens else rows

    return {key: cut(value) for key, value in part.items()}


def within_budget(parts: Sequence[Features], budget: int | None) -> list[Features]:
    """Parts of at most ``budget`` tokens, padding included, of the same texts in the same order.

    Args:
        parts: features as ``preprocess`` gives them.
        budget: at least 1; a text that is longer is a part of its own. None: no limit.

    Example:
        >>> import torch
        >>> part = {"attention_mask": torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1]])}
        >>> [part_shape(each) for each in within_budget([part], 6)]
        [(2, 2), (1, 3)]
    """
    small: list[Features] = []
    for part in parts:
        texts, tokens = part_shape(part)
        step = texts if budget is None else max(1, budget // tokens)
        if step >= texts:
            small.append(part)
        else:
            small += [part_rows(part, start, min(texts, start + step)) for start in range(0, texts, step)]
    return small


def as_many_parts(parts: Sequence[Features], count: int) -> list[Features]:
    """``count`` parts of the same texts in the same order: the one of most tokens is cut in two until there are as many.

    Args:
        parts: features as ``preprocess`` gives them, no more than ``count``.
        count: at most the texts of all parts.

    Example:
        >>> import torch
        >>> part = {"attention_mask": torch.ones(4, 2)}
        >>> [part_shape(each) for each in as_many_parts([part], 3)]
        [(1, 2), (1, 2), (2, 2)]
    """
    many = list(parts)
    while len(many) < count:
        shapes = [part_shape(part) for part in many]
        place = max((at for at in range(len(many)) if shapes[at][0] > 1), key=lambda at: shapes[at][0] * shapes[at][1])
        part, texts = many[place], shapes[place][0]
        many[place : place + 1] = [part_rows(part, 0, texts // 2), part_rows(part, texts // 2, texts)]
    return many
