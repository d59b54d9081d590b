"""GradCache: the embeddings of a large batch in the memory of a small one.

Dimension names: n texts, d embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.packing import MASK, embed_packed

Features = Mapping[str, Any]


def embed_parts(
    embedder: SentenceTransformer, parts: Sequence[Features], *, recompute: bool = False
) -> Float[Tensor, "n d"]:
    """Embed the parts of one batch one after the other, with gradient.

    With ``recompute`` only the embeddings are kept: the backward pass computes each part again, with the random numbers
    that it had, and frees it before the next; the last part alone is kept, as it is the first that the backward pass needs.
    Loss and gradients are those of the whole batch, as in GradCache, but in one graph with one backward pass, so that DDP
    sums the gradients once.

    Args:
        embedder: in the mode in which it trains.
        parts: features as ``preprocess`` gives them, or packed (see `packed_rows`).
        recompute: keep the activations of one part at most.

    Returns:
        The embeddings of all parts below each other.

    Reference: Gao et al. (2021), Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, arXiv:2101.06983;
    Chen et al. (2016), Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174.
    """

    def embedded(part: Features) -> Tensor:
        if MASK in part:
            return embed_packed(embedder, part)
        return embedder(dict(part))["sentence_embedding"]

    again = parts[:-1] if recompute else []
    rows = [checkpoint(embedded, part, use_reentrant=False) for part in again]
    return torch.cat(rows + [embedded(part) for part in parts[len(again) :]])
