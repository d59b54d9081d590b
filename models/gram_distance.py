"""How far a batch's similarities are from those of a base model, as a term that can be trained.

Dimension names: n embeddings of one batch (over all ranks), d their length, e that of the base's.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from models.cosines import cosines


def gram_distance(embeddings: Float[Tensor, "n d"], base: Float[Tensor, "n e"]) -> Float[Tensor, ""]:
    """Mean squared difference of the two matrices of cosine similarities, over all pairs of different rows.

    The range is [0, 4]; 0, the best, says that every pair is as similar as in the base: the embedding is the base's up to a
    rotation and the lengths of its rows. It is a mean over pairs, so a batch's value is an unbiased estimate of that of all
    texts, and its gradient has the same scale in every batch. That is why it is this and not 1 - CKA, which retention is
    reported in: CKA is a ratio, undefined below 4 rows, biased or noisy in a small batch, and steep where a batch's
    similarities are nearly equal; it would also let the similarities all shrink together. The computation is in float32 at
    least, and nothing of it waits for a device.

    Args:
        embeddings: one row a text; only directions matter.
        base: the same texts in the same order, by the base model; no gradient flows into it.

    Raises:
        ValueError: another number of rows, or fewer than 2.

    Reference: Park et al. (2019), Relational Knowledge Distillation, arXiv:1904.05068 (distances there, cosines here);
        Tung and Mori (2019), Similarity-Preserving Knowledge Distillation, arXiv:1907.09682.

    Example:
        >>> gram_distance(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [1.0, 0.0]])).item()
        1.0
    """
    n = len(embeddings)
    if n != len(base) or n < 2:
        raise ValueError(
            f"base: expected one row for each of at least 2 embeddings, got {len(base)} for {n}; embed the same texts"
        )
    difference = cosines(embeddings) - cosines(base.detach())
    others = ~torch.eye(n, dtype=torch.bool, device=embeddings.device)
    return torch.where(others, difference, 0).square().sum() / (n * (n - 1))
