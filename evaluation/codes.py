"""What stands beside the rows (the blocks of the texts, the clusters found) as codes 0..k-1.

A block is what several texts were cut from, a stretch of a sequence or a document: they resemble each other anyway.

Dimension names:
    n: texts
    k: distinct values
"""

import torch
from jaxtyping import Int64
from torch import Tensor

from evaluation.labels import Labels, label_values


def row_codes(values: Labels, n: int, *, name: str) -> tuple[Int64[Tensor, " n"], int]:
    """Codes in order of first appearance, and the number of distinct values.

    Raises:
        ValueError: naming the argument: values of another length than `n` or of more than one dimension, or a missing
            one (None, NaN).

    Example:
        >>> row_codes([7, 3, 7], 3, name="found")
        (tensor([0, 1, 0]), 2)
    """
    plain = label_values(values)
    if len(plain) != n:
        raise ValueError(f"{name}: expected {n}, one for each text, got {len(plain)}; align the two")
    missing = [row for row, value in enumerate(plain) if value is None or value != value]
    if missing:
        raise ValueError(
            f"{name}: expected a value for every text, got none in {len(missing)} rows (first: row {missing[0]}); "
            "fill them in or leave these texts out"
        )
    numbering = {value: code for code, value in enumerate(dict.fromkeys(plain))}
    return torch.tensor([numbering[value] for value in plain], dtype=torch.int64), len(numbering)


def block_codes(blocks: Labels | None, n: int) -> Int64[Tensor, " n"]:
    """Codes of the blocks; without blocks every text is one of its own.

    Raises:
        ValueError: as `row_codes`.

    Example:
        >>> block_codes(["even:0", "even:0", "odd:0"], 3), block_codes(None, 3)
        (tensor([0, 0, 1]), tensor([0, 1, 2]))
    """
    return torch.arange(n) if blocks is None else row_codes(blocks, n, name="blocks")[0]
