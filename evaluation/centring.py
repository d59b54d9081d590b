"""Embeddings made ready for measuring: checked, in float64, their mean subtracted.

The cosines of an LLM embedder are often all near 1: a large common offset with a small spread around it. Distances
computed on such float32 rows lose every digit (silhouettes were off by up to 0.47), so each metric here starts from
`centred`. All metrics of this package are invariant to the translation.

Dimension names:
    n: texts
    b: texts of one chunk
    d: embedding width
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

Embeddings = Float[Tensor, "_n _d"] | Float[np.ndarray, "_n _d"]
"""One row a text, of any floating dtype, on any device; what `encode` returns, as tensor or as array.

The sizes are not bound across arguments (the underscores): that two of them fit is for the functions to say."""


CHUNK_ELEMENTS = 1 << 18
"""Coordinates worked on at once where embeddings are streamed: 2 MiB of float64, about what a processor's cache holds."""


def chunks(rows: Float[Tensor, "n d"]) -> Iterator[tuple[slice, Float[Tensor, "b d"]]]:
    """The rows a few at a time: (which rows, a view of them)."""
    n, d = rows.shape
    step = max(1, CHUNK_ELEMENTS // d)
    for start in range(0, n, step):
        which = slice(start, min(start + step, n))
        yield which, rows[which]


def checked(embeddings: Embeddings, *, name: str = "embeddings") -> Float[Tensor, "n d"]:
    """The embeddings as a detached tensor of their own dtype, or a ValueError that says what is wrong with them."""
    rows = torch.as_tensor(embeddings).detach()
    if rows.ndim != 2 or rows.shape[0] == 0 or rows.shape[1] == 0:
        raise ValueError(
            f"{name}: expected a matrix with one row a text, got shape {tuple(rows.shape)}; stack the embeddings first"
        )
    if not rows.is_floating_point():
        raise ValueError(f"{name}: expected a floating dtype, got {rows.dtype}; convert with .float()")
    broken = sum(_broken(chunk) for _, chunk in chunks(rows))
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
    points = rows.to(torch.float64, copy=True)
    size = torch.linalg.vector_norm(points, dim=1).max()
    if not bool(torch.isfinite(size * size * rows.shape[0])):
        raise ValueError(f"{name}: expected norms below 1e150, got {float(size):.3g}; rescale the embeddings")
    points -= points.mean(dim=0)
    spread = torch.linalg.vector_norm(points, dim=1).max()
    if spread <= rounding(rows.dtype) * size:
        return points.zero_()
    return points


def rounding(dtype: torch.dtype) -> float:
    """How far rows of this dtype may lie from their mean, relative to their length, and still be one point.

    Storing a row rounds it by about a quarter of eps, and what computed it has rounded several times: a transformer whose
    texts all end in one state has spread them by 0.9 eps. The mean over many rows rounds by a few eps of float64 more.
    """
    return max(torch.finfo(dtype).eps, 16 * torch.finfo(torch.float64).eps)


def _broken(rows: Float[Tensor, "b d"]) -> int:
    """How many rows are not finite. One sum tells that none is; sums of large finite numbers overflow too."""
    wide = torch.float64 if rows.dtype == torch.float64 else torch.float32
    if bool(torch.isfinite(rows.sum(dtype=wide))):
        return 0
    return int((~torch.isfinite(rows).all(dim=1)).sum())


def coincide(points: Float64[Tensor, "n d"]) -> bool:
    """Whether all rows of `centred` embeddings are one point, as after a collapse."""
    return not bool(points.any())
