"""Indices that look at clusters through their centroids: Davies-Bouldin and Calinski-Harabasz, in O(n d).

Dimension names:
    n: points
    d: width
    k: clusters
"""

import math

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from evaluation.centring import chunks
from evaluation.distances import pairwise_distances
from evaluation.silhouettes import silhouette_undefined


def davies_bouldin(points: Float64[Tensor, "n d"], codes: Int64[Tensor, " n"], k: int) -> tuple[float, str | None]:
    """The index of centred points (codes 0..k-1), and why it is undefined if it is nan."""
    undefined = silhouette_undefined(points, k)
    if undefined is not None:
        return math.nan, undefined
    codes, counts, centroids, radii = _clusters(points, codes, k)
    scatter = points.new_zeros(k).index_add_(0, codes, radii) / counts
    apart = pairwise_distances(centroids, centroids).fill_diagonal_(torch.inf)
    # Centroids that are equal in exact arithmetic differ by rounding: a few float64 units of the cloud's own radius.
    if apart.min() <= 1e-12 * torch.linalg.vector_norm(points, dim=1).max():
        return math.nan, "the centroids of two clusters coincide"
    ratios = (scatter[:, None] + scatter[None, :]) / apart
    return float(ratios.amax(dim=1).mean()), None


def calinski_harabasz(points: Float64[Tensor, "n d"], codes: Int64[Tensor, " n"], k: int) -> tuple[float, str | None]:
    """The index of centred points (codes 0..k-1), and why it is undefined if it is nan."""
    undefined = silhouette_undefined(points, k)
    if undefined is not None:
        return math.nan, undefined
    _, counts, centroids, radii = _clusters(points, codes, k)
    # The same rounding as above: clusters of one point each have radii of a few float64 units, not of zero.
    if radii.max() <= 1e-12 * torch.linalg.vector_norm(points, dim=1).max():
        return math.nan, "no cluster has a spread of its own"
    between = float(counts @ centroids.square().sum(dim=1)) / (k - 1)
    within = float(radii @ radii) / (points.shape[0] - k)
    return between / within, None


def _clusters(
    points: Float64[Tensor, "n d"], codes: Int64[Tensor, " n"], k: int
) -> tuple[Int64[Tensor, " n"], Float64[Tensor, " k"], Float64[Tensor, "k d"], Float64[Tensor, " n"]]:
    """The codes on the points' device, the clusters' sizes and centroids, and each point's distance to its centroid."""
    codes = codes.to(points.device)
    counts = torch.bincount(codes, minlength=k).double()
    centroids = points.new_zeros(k, points.shape[1]).index_add_(0, codes, points) / counts[:, None]
    radii = [torch.linalg.vector_norm(chunk - centroids[codes[which]], dim=1) for which, chunk in chunks(points)]
    return codes, counts, centroids, torch.cat(radii)
