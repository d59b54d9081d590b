"""Labels of any kind, as codes 0..k-1.

Dimension names:
    n: texts
    k: distinct labels
"""

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

Labels = Sequence[Hashable] | Shaped[Tensor, " _n"] | Shaped[np.ndarray, " _n"]
"""One label a text: integers, strings, or a one-dimensional tensor or array of them."""


def label_values(labels: Labels) -> list[Hashable]:
    """The labels as plain Python values, which hash by value (a tensor hashes by identity)."""
    values = labels.tolist() if isinstance(labels, Tensor | np.ndarray) else list(labels)
    if not isinstance(values, list) or any(isinstance(value, list) for value in values):
        raise ValueError("labels: expected one dimension, got a scalar or a matrix; give one label a row")
    return [value.item() if isinstance(value, Tensor | np.generic) else value for value in values]


def label_codes(labels: Labels, n: int) -> tuple[Int64[Tensor, " n"], int]:
    """Codes in order of first appearance, and the number of distinct labels.

    Raises:
        ValueError: labels of another length than `n` or of more than one dimension, or a missing label (None, NaN).

    Example:
        >>> label_codes(["prime", "even", "prime"], 3)
        (tensor([0, 1, 0]), 2)
    """
    values = label_values(labels)
    if len(values) != n:
        raise ValueError(f"labels: expected {n}, one for each row of the embeddings, got {len(values)}; align the two")
    missing = [row for row, value in enumerate(values) if value is None or value != value]
    if missing:
        raise ValueError(
            f"labels: expected a label for every text, got none in {len(missing)} rows (first: row {missing[0]}); "
            "label these texts or leave them out"
        )
    numbering: dict[Hashable, int] = {}
    codes = [numbering.setdefault(value, len(numbering)) for value in values]
    return torch.tensor(codes, dtype=torch.int64), len(numbering)
