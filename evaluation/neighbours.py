"""Whether a text's nearest neighbours share its label, where no neighbour may come from its own block.

Dimension names:
    n: texts
    b: texts of one tile
    d: embedding width
    c: distinct labels
"""

import math

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from evaluation.centring import Embeddings, centred, checked, coincide, rounding
from evaluation.codes import block_codes
from evaluation.distances import distance_tiles
from evaluation.labels import Labels, label_codes

_EQUAL = 1e-9
"""Relative difference below which two distances are the same: what `pairwise_distances` guarantees."""


def neighbour_accuracy(
    embeddings: Embeddings, labels: Labels, *, blocks: Labels | None = None, k: int = 1, metric: str = "euclidean"
) -> float:
    """The share of texts whose label is that of most of their k nearest neighbours outside their own block.

    Each of the k neighbours has one vote; of labels with equally many votes the one with the nearer text wins, and
    those that are equal in this too share the text, which then counts for a half, a third... The order of the texts
    decides nothing: texts equally far share the votes that are left for them, and where more than k are the nearest,
    all equally far, a text counts for the share of its label among them, as if one were drawn. (A majority of them
    would be wrong for noise: a text does not vote for itself, so its own label is one behind.)

    Without ``blocks`` only the text itself is excluded. Windows that overlap, or were cut from one stretch, must share
    a block: a twin is nearest whatever the model has learnt, and has lifted .72 to .79. A label that lies in one block
    has no neighbour to find; its texts count as wrong.

    Args:
        embeddings: (n, d), any floating dtype.
        labels: n labels, integers or strings.
        blocks: n names of the blocks; None: every text is one of its own.
        k: neighbours that vote, at least 1.
        metric: "euclidean", or "cosine" for distances between directions; these differ unless rows are normalised.

    Returns:
        0..1, best 1. Chance is about the sum of the squared shares of the labels (a little below 1 / c for c labels of
        equal size, since a text does not vote for itself). nan, for all of the texts, if one of them has fewer than k
        texts outside its block; if there are fewer than 2 labels or none that lies in two blocks; if all embeddings
        coincide; and under "cosine" if one is zero (`neighbour_undefined` says which).

    Raises:
        ValueError: embeddings that are not a finite matrix, labels or blocks that do not match them, k < 1, or another
            metric.

    Reference:
        Cover & Hart, "Nearest neighbor pattern classification", 1967.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
        >>> neighbour_accuracy(x, ["a", "a", "b", "b"]), neighbour_accuracy(x, ["a", "b", "b", "b"])
        (1.0, 0.5)
    """
    points, codes, own = _prepared(embeddings, labels, blocks, k, metric)
    if isinstance(points, str) or _undefined(points, codes, own, k) is not None:
        return math.nan
    return _accuracy(points, codes.to(points.device), own.to(points.device), k)


def neighbour_undefined(
    embeddings: Embeddings, labels: Labels, *, blocks: Labels | None = None, k: int = 1, metric: str = "euclidean"
) -> str | None:
    """Why `neighbour_accuracy` of the same arguments is nan; None when it is a number.

    Raises:
        ValueError: as `neighbour_accuracy`.

    Example:
        >>> neighbour_undefined(torch.eye(3), ["a", "a", "b"], k=3)
        'needs at least 3 texts outside the block of every text, got 2 for one of them'
    """
    return _undefined(*_prepared(embeddings, labels, blocks, k, metric), k)


Points = Float64[Tensor, "n d"]


def _prepared(
    embeddings: Embeddings, labels: Labels, blocks: Labels | None, k: int, metric: str
) -> tuple[Points | str, Int64[Tensor, " n"], Int64[Tensor, " n"]]:
    """The points whose distances order the neighbours, or why there are none; codes of the labels and the blocks."""
    if k < 1:
        raise ValueError(f"k: expected at least 1 neighbour, got {k}; 1 and 5 are good numbers")
    if metric not in ("euclidean", "cosine"):
        raise ValueError(f'metric: expected "euclidean" or "cosine", got {metric!r}; choose one')
    points = _directions(embeddings) if metric == "cosine" else _positions(embeddings)
    n = len(embeddings)
    return points, label_codes(labels, n)[0], block_codes(blocks, n)


def _positions(embeddings: Embeddings) -> Points | str:
    points = centred(embeddings)
    return "all embeddings coincide" if coincide(points) else points


def _directions(embeddings: Embeddings) -> Points | str:
    """Rows of length 1 around their mean: the squared distance of two of them is twice one minus their cosine."""
    rows = checked(embeddings)
    exact = rows.double()
    # By the largest entry first: the square of 1e-200 is 0.
    sizes = torch.linalg.vector_norm(exact, ord=torch.inf, dim=1, keepdim=True)
    zeros = int((sizes == 0).sum())
    if zeros:
        return f"{zeros} of {rows.shape[0]} embeddings are zero and have no direction"
    exact = exact / sizes
    points = centred(exact / torch.linalg.vector_norm(exact, dim=1, keepdim=True))
    furthest = torch.linalg.vector_norm(points, dim=1).max()
    return "all embeddings point in one direction" if furthest <= rounding(rows.dtype) else points


def _undefined(points: Points | str, codes: Int64[Tensor, " n"], own: Int64[Tensor, " n"], k: int) -> str | None:
    distinct = int(codes.max()) + 1
    if distinct < 2:
        return "needs at least 2 distinct labels, got 1"
    outside = codes.shape[0] - int(torch.bincount(own).max())
    if outside < k:
        return f"needs at least {k} texts outside the block of every text, got {outside} for one of them"
    if torch.unique(torch.stack([codes, own]), dim=1).shape[1] == distinct:
        return "every label lies in a single block"
    return points if isinstance(points, str) else None


def _accuracy(points: Points, codes: Int64[Tensor, " n"], own: Int64[Tensor, " n"], k: int) -> float:
    labels = int(codes.max()) + 1
    total = points.new_zeros(())
    for rows, distances in distance_tiles(points):
        barred = distances.masked_fill(own[rows, None] == own[None, :], torch.inf)
        total += _shares(barred, codes, codes[rows], k, labels).sum()
    return float(total) / points.shape[0]


def _shares(
    distances: Float64[Tensor, "b n"], codes: Int64[Tensor, " n"], true: Int64[Tensor, " b"], k: int, labels: int
) -> Float64[Tensor, " b"]:
    """How much of each text of the tile is right: 1, 0, or a part where labels are equal in votes and distance."""
    last = distances.topk(k, dim=1, largest=False).values[:, -1:]
    row, column = torch.nonzero(distances <= last * (1 + _EQUAL), as_tuple=True)
    distance, label = distances[row, column], codes[column]
    tied = distance >= last[row, 0] * (1 - _EQUAL)
    # Votes in integers, times the number of tied texts, so that equal ones compare as equal.
    number = torch.zeros_like(true).index_add_(0, row, tied.long())
    nearer = torch.zeros_like(true).index_add_(0, row, (~tied).long())
    weight = torch.where(tied, (k - nearer)[row], number[row])
    cell = row * labels + label
    votes = codes.new_zeros(true.shape[0] * labels).index_add_(0, cell, weight).view(-1, labels)
    near = torch.full_like(votes, torch.inf, dtype=torch.float64)
    near.view(-1).scatter_reduce_(0, cell, distance, "amin")
    near = near.masked_fill(votes < votes.amax(dim=1, keepdim=True), torch.inf)
    winners = near <= near.amin(dim=1, keepdim=True) * (1 + _EQUAL)
    drawn = ((nearer == 0) & (number > k))[:, None]
    shares = torch.where(drawn, votes, winners).double()
    return (shares / shares.sum(dim=1, keepdim=True)).gather(1, true[:, None])[:, 0]
