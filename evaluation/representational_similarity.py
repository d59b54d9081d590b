"""RSA: do two embeddings rank the distances between texts alike?

Dimension names:
    n: texts
    d: width of the embeddings
    e: width of the base embeddings
    m: pairs of texts
"""

import math

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from evaluation.centring import Embeddings
from evaluation.distances import TILE_ELEMENTS, distance_tiles
from evaluation.paired import Measured, pair_undefined, paired

PAIRS = 1 << 21
"""Pairs of texts that are compared: all of up to 2,048 texts, and a sample of about so many of more."""


def rsa(embeddings: Embeddings, base_embeddings: Embeddings) -> float:
    """Representational similarity: the Spearman correlation of the two sets of pairwise distances.

    Distances that agree to float32 are ties, and share their rank. Of more than 2,048 texts a fixed sample of about two
    million pairs is compared, in which every text occurs equally often: the same at every call, and within about 0.001
    of the value over all pairs.

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
    return measured_rsa(*paired(embeddings, base_embeddings))[0]


def measured_rsa(x: Float64[Tensor, "n d"], y: Float64[Tensor, "n e"]) -> Measured:
    """`rsa` of matrices already `paired`, and why it is undefined if it is nan."""
    reason = pair_undefined(x, y, 3)
    if reason is not None:
        return math.nan, reason
    pairs = [_distances(points) for points in (x, y)]
    if any(float(p.max() - p.min()) <= 2 * torch.finfo(p.dtype).eps * float(p.max()) for p in pairs):
        return math.nan, "all distances are equal"
    a, b = (_ranks(p) for p in pairs)
    a, b = a - a.mean(), b - b.mean()
    return float((a @ b) / (torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b))), None


def _distances(points: Float64[Tensor, "n d"]) -> Float32[Tensor, " m"]:
    """Of all pairs or of the sample; in float32, where distances that differ by rounding alone are equal."""
    n = points.shape[0]
    if n * (n - 1) // 2 > PAIRS:
        return _distances_of(points, *_sampled_pairs(n))
    distances = points.new_empty(n, n, dtype=torch.float32)
    for rows, tile in distance_tiles(points):
        distances[rows] = tile
    left, right = torch.triu_indices(n, n, offset=1, device=points.device)
    return distances[left, right]


def _sampled_pairs(n: int) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " m"]]:
    """Distinct pairs: the texts on a circle in random order, each with those a few random steps ahead of it."""
    generator = torch.Generator().manual_seed(0)
    circle = torch.randperm(n, generator=generator)
    steps = 1 + torch.randperm((n - 1) // 2, generator=generator)[: max(1, PAIRS // n)]
    ahead = (torch.arange(n)[None, :] + steps[:, None]) % n
    return circle.repeat(len(steps)), circle[ahead].flatten()


def _distances_of(
    points: Float64[Tensor, "n d"], left: Int64[Tensor, " m"], right: Int64[Tensor, " m"]
) -> Float32[Tensor, " m"]:
    left, right = left.to(points.device), right.to(points.device)
    # Written into one vector: small results kept between large temporaries would splinter the heap.
    distances = points.new_empty(left.shape, dtype=torch.float32)
    step = max(1, TILE_ELEMENTS // (4 * points.shape[1]))
    for start in range(0, left.shape[0], step):
        part = slice(start, start + step)
        distances[part] = torch.linalg.vector_norm(points[left[part]] - points[right[part]], dim=1)
    return distances


def _ranks(values: Float32[Tensor, " m"]) -> Float64[Tensor, " m"]:
    """Ranks from 1; ties share their mean rank."""
    _, group, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[group]
