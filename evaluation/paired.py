"""Two embeddings of the same texts, made ready to be compared: centred, of unit size, row for row.

Dimension names:
    n: texts
    d: width of the embeddings
    e: width of the base embeddings
"""

import torch
from jaxtyping import Float64
from torch import Tensor

from evaluation.centring import Embeddings, centred, coincide

Measured = tuple[float, str | None]
"""A number, and why it is undefined if it is nan."""


def paired(embeddings: Embeddings, base_embeddings: Embeddings) -> tuple[Tensor, Tensor]:
    """Both matrices in float64 on the device of the first, centred and of unit Frobenius norm (zeros stay zeros).

    Row i of both embeds the same text; the widths may differ. What is compared does not change under translation and
    rescaling of either side, so the fourth powers in it can neither overflow nor vanish.

    Raises:
        ValueError: matrices that are not finite or differ in their number of rows.

    Example:
        >>> x, y = paired(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0, 5.0], [1.0, 5.0]]))
        >>> round(x.norm().item(), 9), y.norm().item()
        (1.0, 0.0)
    """
    x = centred(embeddings)
    y = centred(base_embeddings, name="base_embeddings").to(x.device)
    if x.shape[0] != y.shape[0]:
        raise ValueError(
            f"base_embeddings: expected {x.shape[0]} rows, one for each row of the embeddings, got {y.shape[0]}; "
            "embed the same texts with both models"
        )
    return _unit(x), _unit(y)


def pair_undefined(x: Float64[Tensor, "n d"], y: Float64[Tensor, "n e"], least: int) -> str | None:
    """Why nothing can be said of a pair that needs `least` texts; None when something can."""
    if x.shape[0] < least:
        return f"needs at least {least} texts, got {x.shape[0]}"
    if coincide(x):
        return "all embeddings coincide"
    if coincide(y):
        return "all base embeddings coincide"
    return None


def _unit(points: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
    if coincide(points):
        return points
    # In place, as `centred` has made a copy. By the largest entry first: the square of 1e-200 is 0.
    points.div_(torch.linalg.vector_norm(points, ord=torch.inf))
    return points.div_(torch.linalg.vector_norm(points))
