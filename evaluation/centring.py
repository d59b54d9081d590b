"""Embeddings made ready for measuring: checked, in float64, their mean subtracted.

The cosines of an LLM embedder are often all near 1: a large common offset with a small spread around it. Distances
computed on such float32 rows lose every digit (silhouettes were off by up to 0.47), so each metric here starts from
`centred`. All metrics of this package are invariant to the translation.

Dimension names:
    n: texts
    d: embedding width
"""

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

Embeddings = Float[Tensor, "_n _d"] | Float[np.ndarray, "_n _d"]
"""One row a text, of any floating dtype, on any device; what `encode` returns, as tensor or as array.

The sizes are not bound across arguments (the underscores): that two of them fit is for the functions to say."""


def checked(embeddings: Embeddings, *, name: str = "embeddings") -> Float[Tensor, "n d"]:
    """The embeddings as a detached tensor of their own dtype, or a ValueError that says what is wrong with them."""
    rows = torch.as_tensor(embeddings).detach()
    if rows.ndim != 2 or rows.shape[0] == 0 or rows.shape[1] == 0:
        raise ValueError(
            f"{name}: expected a matrix with one row a text, got shape {tuple(rows.shape)}; stack the embeddings first"
        )
    if not rows.is_floating_point():
        raise ValueError(f"{name}: expected a floating dtype, got {rows.dtype}; convert with .float()")
    broken = int((~torch.isfinite(rows).all(dim=1)).sum())
    if broken:
        raise ValueError(
            f"{name}: expected finite numbers, got NaN or infinity in {broken} of {rows.shape[0]} rows; "
            "check the model's weights and its precision before measuring it"
        )
    return rows


def centred(embeddings: Embeddings, *, name: str = "embeddings") -> Float64[Tensor, "n d"]:
    """The embeddings in float64, minus their mean.

    Rows that agree to the rounding of their dtype come back as exact zeros: what is left of a collapsed model after
    centring is noise, and a metric of noise is not a metric of the model (see `coincide`).

    Raises:
        ValueError: not a matrix, not floating, a row with NaN or infinity, or numbers whose squares overflow float64.
    """
    rows = checked(embeddings, name=name)
    exact = rows.double()
    points = exact - exact.mean(dim=0)
    spread = torch.linalg.vector_norm(points, dim=1).max()
    size = torch.linalg.vector_norm(exact, dim=1).max()
    if not bool(torch.isfinite(size * size * rows.shape[0])):
        raise ValueError(f"{name}: expected norms below 1e150, got {float(size):.3g}; rescale the embeddings")
    # A quarter of eps is about the root mean square of the rounding itself, relative to the row.
    if spread <= torch.finfo(rows.dtype).eps / 4 * size:
        return torch.zeros_like(points)
    return points


def coincide(points: Float64[Tensor, "n d"]) -> bool:
    """Whether all rows of `centred` embeddings are one point, as after a collapse."""
    return not bool(points.any())
