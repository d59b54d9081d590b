"""How much of a base model's geometry is left in another embedding of the same texts.

Row i of both matrices embeds the same text; the widths may differ. Every number is 1 for identical inputs and does not
change under rotation, rescaling or translation of either side.

Dimension names:
    n: texts
    d: width of the embeddings
    e: width of the base embeddings
    m: pairs of texts
"""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from evaluation.centring import Embeddings, centred, coincide
from evaluation.distances import pairwise_distances
from evaluation.reasons import null_for_nan

NEIGHBOURS = 10
"""Neighbours compared by `knn_overlap`."""


def debiased_cka(embeddings: Embeddings, base_embeddings: Embeddings) -> float:
    """Linear centred kernel alignment, with the unbiased estimator HSIC_1 in numerator and denominator.

    Args:
        embeddings: (n, d), any floating dtype.
        base_embeddings: (n, e), the same texts in the same order.

    Returns:
        At most 1, best 1; unrelated embeddings score about 0 at any width (the biased estimator rises towards 1 when
        d > n), below 0 included. nan for fewer than 4 texts and for embeddings that coincide.

    Raises:
        ValueError: matrices that are not finite or differ in their number of rows.

    Reference:
        Song et al., "Feature selection via dependence maximization", 2012 (HSIC_1); Nguyen, Raghu & Kornblith, "Do wide
        and deep networks learn the same things?", 2021.

    Example:
        >>> x = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
        >>> round(debiased_cka(x, 3 * x + 1), 6)
        1.0
    """
    x, y = _pair(embeddings, base_embeddings)
    return _cka(x, y)[0]


def rsa(embeddings: Embeddings, base_embeddings: Embeddings) -> float:
    """Representational similarity: the Spearman correlation of the two sets of pairwise distances.

    Args:
        embeddings: (n, d), any floating dtype.
        base_embeddings: (n, e), the same texts in the same order.

    Returns:
        -1..1, best 1; unrelated embeddings score about 0. nan for fewer than 3 texts, for embeddings that coincide and
        where all distances are equal.

    Raises:
        ValueError: matrices that are not finite or differ in their number of rows.

    Reference:
        Kriegeskorte, Mur & Bandettini, "Representational similarity analysis", 2008.

    Example:
        >>> x = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
        >>> round(rsa(x, 3 * x + 1), 6)
        1.0
    """
    x, y = _pair(embeddings, base_embeddings)
    return _rsa(x, y)[0]


def knn_overlap(embeddings: Embeddings, base_embeddings: Embeddings, *, k: int = NEIGHBOURS) -> float:
    """The share of a text's k nearest neighbours that it keeps, averaged over the texts; itself excluded.

    Args:
        embeddings: (n, d), any floating dtype.
        base_embeddings: (n, e), the same texts in the same order.
        k: neighbours compared, at least 1.

    Returns:
        0..1, best 1; unrelated embeddings keep k / (n - 1). nan for fewer than k + 2 texts (with k + 1 everybody is a
        neighbour) and for embeddings that coincide.

    Raises:
        ValueError: matrices that are not finite or differ in their number of rows, k < 1.

    Example:
        >>> x = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
        >>> knn_overlap(x, 3 * x + 1)
        1.0
    """
    x, y = _pair(embeddings, base_embeddings)
    return _knn(x, y, k)[0]


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
    x, y = _pair(embeddings, base_embeddings)
    return _procrustes(x, y)[0]


def retention_report(embeddings: Embeddings, base_embeddings: Embeddings) -> dict[str, Any]:
    """All four, ready for a row of the report.

    Args:
        embeddings: (n, d), any floating dtype.
        base_embeddings: (n, e), the same texts in the same order, by the base model.

    Returns:
        ``cka, rsa, knn, procrustes``. What is undefined is None, and ``<key>_reason`` beside it says why.

    Raises:
        ValueError: matrices that are not finite or differ in their number of rows.

    Example:
        >>> report = retention_report(torch.eye(3), torch.eye(3))
        >>> report["cka"], report["cka_reason"]
        (None, 'needs at least 4 texts, got 3')
    """
    x, y = _pair(embeddings, base_embeddings)
    report: dict[str, Any] = {}
    for key, (value, reason) in {
        "cka": _cka(x, y),
        "rsa": _rsa(x, y),
        "knn": _knn(x, y, NEIGHBOURS),
        "procrustes": _procrustes(x, y),
    }.items():
        report |= null_for_nan({key: value}, reason)
    return report


Measured = tuple[float, str | None]
"""A number, and why it is undefined if it is nan."""


def _pair(embeddings: Embeddings, base_embeddings: Embeddings) -> tuple[Tensor, Tensor]:
    x = centred(embeddings)
    y = centred(base_embeddings, name="base_embeddings").to(x.device)
    if x.shape[0] != y.shape[0]:
        raise ValueError(
            f"base_embeddings: expected {x.shape[0]} rows, one for each row of the embeddings, got {y.shape[0]}; "
            "embed the same texts with both models"
        )
    return x, y


def _undefined(x: Float64[Tensor, "n d"], y: Float64[Tensor, "n e"], least: int) -> str | None:
    if x.shape[0] < least:
        return f"needs at least {least} texts, got {x.shape[0]}"
    if coincide(x):
        return "all embeddings coincide"
    if coincide(y):
        return "all base embeddings coincide"
    return None


def _cka(x: Float64[Tensor, "n d"], y: Float64[Tensor, "n e"]) -> Measured:
    reason = _undefined(x, y, 4)
    if reason is not None:
        return math.nan, reason
    k, l = _u_centred(x), _u_centred(y)  # noqa: E741
    # Sums of products of U-centred matrices are n (n - 3) HSIC_1; the factor cancels.
    size = float(torch.linalg.vector_norm(k) * torch.linalg.vector_norm(l))
    if size <= 0.0:
        return math.nan, "a similarity matrix has no variance"
    return float((k * l).sum()) / size, None


def _u_centred(x: Float64[Tensor, "n d"]) -> Float64[Tensor, "n n"]:
    """The Gram matrix without its diagonal, U-centred (Székely & Rizzo, 2014): rows then sum to 0."""
    x = x / torch.linalg.vector_norm(x)
    gram = (x @ x.T).fill_diagonal_(0.0)
    n = gram.shape[0]
    rows = gram.sum(dim=1) / (n - 2)
    gram = gram - rows[:, None] - rows[None, :] + gram.sum() / ((n - 1) * (n - 2))
    return gram.fill_diagonal_(0.0)


def _rsa(x: Float64[Tensor, "n d"], y: Float64[Tensor, "n e"]) -> Measured:
    reason = _undefined(x, y, 3)
    if reason is not None:
        return math.nan, reason
    n = x.shape[0]
    left, right = torch.triu_indices(n, n, offset=1)
    pairs = [pairwise_distances(points, points)[left, right] for points in (x, y)]
    if any(float(p.max() - p.min()) <= 1e-12 * float(p.max()) for p in pairs):
        return math.nan, "all distances are equal"
    a, b = (_ranks(p) for p in pairs)
    a, b = a - a.mean(), b - b.mean()
    return float((a @ b) / (torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b))), None


def _ranks(values: Float64[Tensor, " m"]) -> Float64[Tensor, " m"]:
    """Ranks from 1; ties share their mean rank."""
    _, group, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[group]


def _knn(x: Float64[Tensor, "n d"], y: Float64[Tensor, "n e"], k: int) -> Measured:
    if k < 1:
        raise ValueError(f"k: expected at least 1 neighbour, got {k}; {NEIGHBOURS} is a good number")
    reason = _undefined(x, y, k + 2)
    if reason is not None:
        return math.nan, reason
    kept = _neighbours(x, k) & _neighbours(y, k)
    return float(kept.sum()) / (k * x.shape[0]), None


def _neighbours(points: Float64[Tensor, "n d"], k: int) -> Bool[Tensor, "n n"]:
    """Row i marks the k points nearest to point i, itself excluded; of equally near ones the first."""
    distances = pairwise_distances(points, points).fill_diagonal_(torch.inf)
    nearest = distances.sort(dim=1, stable=True).indices[:, :k]
    return torch.zeros_like(distances, dtype=torch.bool).scatter_(1, nearest, True)


def _procrustes(x: Float64[Tensor, "n d"], y: Float64[Tensor, "n e"]) -> Measured:
    reason = _undefined(x, y, 1)
    if reason is not None:
        return math.nan, reason
    # X'Y is d x e, thousands squared for an LLM; triangular factors give its singular values at width min(n, d).
    r, s = (torch.linalg.qr(points.T / torch.linalg.vector_norm(points), mode="r").R for points in (x, y))
    return min(1.0, float(torch.linalg.svdvals(r @ s.T).sum())), None
