"""Cosine similarities of a batch, as every objective takes them.

Dimension names: n embeddings of one batch (over all ranks), d their length.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def cosines(embeddings: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """Cosine of every row with every other, in [-1, 1]; in float32 at least, inside autocast too.

    Under bf16 autocast the product would be rounded to 8 bits, which a division by a temperature of 0.1 makes visible. A row of
    zeros has the cosine 0 with all.

    Example:
        >>> cosines(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 3.0]])).tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 1.0, 1.0]]
    """
    exact = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
    with torch.autocast(embeddings.device.type, enabled=False):
        unit = F.normalize(exact, dim=1)
        return unit @ unit.T
