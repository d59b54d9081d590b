"""Procrustes similarity: can one embedding be turned onto the other?

Dimension names:
    n: texts
    d: width of the embeddings
    e: width of the base embeddings
    r: the smaller of n and d
"""

import math

import torch
from jaxtyping import Float64
from torch import Tensor

from evaluation.centring import Embeddings
from evaluation.paired import Measured, pair_undefined, paired


def procrustes_similarity(embeddings: Embeddings, base_embeddings: Embeddings) -> float:
    """How well the best rotation maps one cloud onto the other, both centred and of unit Frobenius norm.

    It is the nuclear norm of X'Y: the smallest squared residual over rotations is 2 - 2 times this number. The
    narrower side counts as padded with zeros.

    Args:
        embeddings: (n, d), any floating dtype.
        base_embeddings: (n, e), the same texts in the same order.

    Returns:
        0..1, best 1; unrelated embeddings score well above 0 when d is not small beside n. nan for embeddings that
        coincide (a single text always does).

    Raises:
        ValueError: matrices that are not finite or differ in their number of rows.

    Reference:
        Schönemann, "A generalized solution of the orthogonal Procrustes problem", 1966; Ding, Denain & Steinhardt,
        "Grounding representation similarity with statistical testing", 2021.

    Example:
        >>> x = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
        >>> round(procrustes_similarity(x, 3 * x + 1), 6)
        1.0
    """
    return measured_procrustes(*paired(embeddings, base_embeddings))[0]


def measured_procrustes(x: Float64[Tensor, "n d"], y: Float64[Tensor, "n e"]) -> Measured:
    """`procrustes_similarity` of matrices already `paired`, and why it is undefined if it is nan."""
    reason = pair_undefined(x, y, 1)
    if reason is not None:
        return math.nan, reason
    return min(1.0, float(torch.linalg.svdvals(_factor(x) @ _factor(y).T).sum())), None


def _factor(points: Float64[Tensor, "n d"]) -> Float64[Tensor, "r n"]:
    """X' up to a rotation of its rows: with fewer texts than dimensions, n rows instead of thousands."""
    n, d = points.shape
    return points.T if d <= n else torch.linalg.qr(points.T, mode="r").R
