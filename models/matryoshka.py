"""Matryoshka representation learning: one loss at several lengths of the same embedding.

Dimension names: n embeddings of one batch (over all ranks), d their length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from models.prefix_lengths import check_dimensions


def matryoshka_loss(
    loss: Callable[[Tensor], Tensor],
    embeddings: Float[Tensor, "n d"],
    dimensions: Sequence[int],
    *,
    weights: Sequence[float] | None = None,
) -> Float[Tensor, ""]:
    """Mean of a loss over the first so many dimensions of the embeddings, and over all of them (Kusupati et al. 2022).

    The paper sums its terms with weights of 1; their mean keeps the loss, and with it the learning rate and the clipping of
    gradients, on the scale of a single one. Each prefix is normalised by the loss itself.

    Args:
        loss: embeddings (n, m) -> scalar, for any m; blind to the embeddings' lengths.
        embeddings: whole, one row a text.
        dimensions: lengths of the prefixes, ascending and below d; none gives the loss itself.
        weights: of each prefix and, last, of the whole; they are divided by their sum. None: equal ones.

    Raises:
        ValueError: dimensions that are not ascending, above 0 and below d; another number of weights than terms, or weights
            that are not positive.

    Reference: Kusupati et al. (2022), Matryoshka Representation Learning, arXiv:2205.13147, equation 1.

    Example:
        >>> matryoshka_loss(lambda z: z.sum(), torch.ones(1, 4), (1, 3)).item()  # (1 + 3 + 4) / 3
        2.6666667461395264
    """
    check_dimensions(dimensions, embeddings.shape[1])
    shares = [1.0] * (len(dimensions) + 1) if weights is None else list(weights)
    if len(shares) != len(dimensions) + 1 or not all(0 < share < float("inf") for share in shares):
        raise ValueError(
            f"weights: expected {len(dimensions) + 1} positive numbers, one a prefix and one for the whole, got "
            f"{', '.join(map(str, shares))}; leave them out for equal ones"
        )
    lengths = (*dimensions, embeddings.shape[1])
    terms = [loss(embeddings[:, :length]) * share for length, share in zip(lengths, shares, strict=True)]
    return torch.stack(terms).sum() / sum(shares)
