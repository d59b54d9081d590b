"""Debiased linear CKA: do two embeddings find the same texts similar?

The matrix of all similarities is never held: either a tile of its rows is, or, with many more texts than dimensions, a
tile of the products of features. Both are exact.

Dimension names:
    n: texts
    d: width of the embeddings
    e: width of the base embeddings
    b: texts of one tile
"""

import math

import torch
from jaxtyping import Float64
from torch import Tensor

from evaluation.centring import Embeddings
from evaluation.distances import TILE_ELEMENTS
from evaluation.paired import Measured, pair_undefined, paired

_NO_VARIANCE = 1e-12
"""Below this share of its similarities, what is left of a matrix after U-centring is rounding."""


def debiased_cka(embeddings: Embeddings, base_embeddings: Embeddings) -> float:
    """Linear centred kernel alignment, with the unbiased estimator HSIC_1 in numerator and denominator.

    Args:
        embeddings: (n, d), any floating dtype.
        base_embeddings: (n, e), the same texts in the same order.

    Returns:
        At most 1, best 1; unrelated embeddings score about 0 at any width (the biased estimator rises towards 1 when
        d > n), below 0 included. nan for fewer than 4 texts, for embeddings that coincide and where the similarities
        have no variance: all texts equally far apart, or all but one in the same place.

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
    return measured_cka(*paired(embeddings, base_embeddings))[0]


def measured_cka(x: Float64[Tensor, "n d"], y: Float64[Tensor, "n e"]) -> Measured:
    """`debiased_cka` of matrices already `paired`, and why it is undefined if it is nan."""
    reason = pair_undefined(x, y, 4)
    if reason is not None:
        return math.nan, reason
    n, d, e = *x.shape, y.shape[1]
    # Tiles of rows lose no digit, so few texts always take them; products of features win when n exceeds the widths.
    by_texts = n * n <= TILE_ELEMENTS or n * (d + e) <= d * e
    (own, base, shared), (own_scale, base_scale) = (_by_texts if by_texts else _by_features)(x, y)
    if own <= _NO_VARIANCE * own_scale or base <= _NO_VARIANCE * base_scale:
        return math.nan, "a similarity matrix has no variance"
    return min(1.0, shared / math.sqrt(own * base)), None


Products = tuple[tuple[float, float, float], tuple[float, float]]
"""n (n - 3) HSIC_1 of x with itself, of y with itself, and of the two; the sums of squared similarities of x and of y.

The factor n (n - 3) cancels in the ratio; HSIC_1 of a matrix with itself is 0 where the similarities do not vary.
"""


def _by_texts(x: Float64[Tensor, "n d"], y: Float64[Tensor, "n e"]) -> Products:
    """As sums of products of the U-centred similarities (Székely & Rizzo, 2014), a tile of texts at a time."""
    n = x.shape[0]
    height = max(1, TILE_ELEMENTS // n)
    levels = [_levels(points) for points in (x, y)]
    sums = x.new_zeros(5)
    for start in range(0, n, height):
        rows = slice(start, min(start + height, n))
        k, k_scale = _u_centred_rows(x, rows, levels[0])
        l, l_scale = _u_centred_rows(y, rows, levels[1])  # noqa: E741
        sums += torch.stack([(k * k).sum(), (l * l).sum(), (k * l).sum(), k_scale, l_scale])
    own, base, shared, own_scale, base_scale = sums.tolist()
    return (own, base, shared), (own_scale, base_scale)


def _levels(points: Float64[Tensor, "n d"]) -> Float64[Tensor, " n"]:
    """What U-centring subtracts for each text: its similarities to the others over n - 2, less half the grand level."""
    n = points.shape[0]
    rows = points @ points.sum(dim=0) - points.square().sum(dim=1)
    return rows / (n - 2) - rows.sum() / (2 * (n - 1) * (n - 2))


def _u_centred_rows(
    points: Float64[Tensor, "n d"], rows: slice, levels: Float64[Tensor, " n"]
) -> tuple[Float64[Tensor, "b n"], Float64[Tensor, ""]]:
    """Rows of the similarities without their diagonal, less the levels of both texts; and their sum of squares before."""
    gram = points[rows] @ points.T
    scale = gram.square().sum()
    gram.sub_(levels[rows, None]).sub_(levels[None, :])
    gram[:, rows].fill_diagonal_(0.0)
    return gram, scale


def _by_features(x: Float64[Tensor, "n d"], y: Float64[Tensor, "n e"]) -> Products:
    """As HSIC_1 is written, where tr(K L) = |X'Y|^2 - a.b and the row sums of K are -a: a, b the squared norms."""
    n = x.shape[0]
    a, b = x.square().sum(dim=1), y.square().sum(dim=1)

    def product(gram: float, left: Float64[Tensor, " n"], right: Float64[Tensor, " n"]) -> float:
        diagonal = float(left @ right)
        total = float(left.sum() * right.sum())
        return gram - diagonal + total / ((n - 1) * (n - 2)) - 2 * diagonal / (n - 2)

    own, base, shared = _squared_products(x, x), _squared_products(y, y), _squared_products(x, y)
    return (product(own, a, a), product(base, b, b), product(shared, a, b)), (own, base)


def _squared_products(x: Float64[Tensor, "n d"], y: Float64[Tensor, "n e"]) -> float:
    """|X'Y|^2, which is also the sum over all pairs of texts of their two similarities multiplied."""
    width = max(1, TILE_ELEMENTS // y.shape[1])
    return float(sum((x[:, start : start + width].T @ y).square().sum() for start in range(0, x.shape[1], width)))
