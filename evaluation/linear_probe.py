"""How much of the labels a linear classifier reads off the embeddings, on texts it was not fitted to.

Dimension names:
    n: texts
    t: training texts of a fold
    v: texts held out
    d: embedding width
    r: width after projection
"""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

from evaluation.centring import Embeddings, centred, checked
from evaluation.codes import block_codes
from evaluation.labels import Labels, label_codes

ITERATIONS = 1000
"""Steps of the solver; standardised features need some tens."""


def linear_probe_accuracy(
    embeddings: Embeddings, labels: Labels, *, blocks: Labels | None = None, folds: int = 5, seed: int = 0
) -> float:
    """Cross-validated accuracy of a logistic regression (L2, C = 1) on standardised embeddings.

    Every text is held out once. Blocks are never split between fitting and testing, labels are spread over the folds as
    evenly as blocks allow, and the folds are fewer if the smallest label has fewer blocks. Mean and scale of each
    dimension come from the training texts alone; a dimension that varies by no more than its rounding is left out.

    Args:
        embeddings: (n, d), any floating dtype.
        labels: n labels, integers or strings.
        blocks: n names of the blocks; None: every text is one of its own.
        folds: parts the blocks are dealt into, at least 2.
        seed: of the deal, which depends on the order of the texts too.

    Returns:
        0..1, best 1. Chance is the share of the largest label. nan when there are fewer than 2 labels, when a label
        lies in fewer than 2 blocks, and when no dimension varies (`linear_probe_undefined` says which).

    Raises:
        ValueError: embeddings that are not a finite matrix, labels or blocks that do not match them, or folds < 2.

    Reference:
        Alain & Bengio, "Understanding intermediate layers using linear classifier probes", 2017.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
        >>> linear_probe_accuracy(x, ["a", "a", "a", "b", "b", "b"])
        1.0
    """
    points, codes, own = _prepared(embeddings, labels, blocks, folds)
    if _undefined(points, codes, own) is not None:
        return math.nan
    matrix = points.cpu().numpy()
    true, groups = codes.numpy(), own.numpy()
    deal = StratifiedGroupKFold(min(folds, _fewest_blocks(codes, own)), shuffle=True, random_state=seed)
    right = sum(
        _right(matrix[train], true[train], matrix[test], true[test]) for train, test in deal.split(matrix, true, groups)
    )
    return right / len(true)


def linear_probe_undefined(
    embeddings: Embeddings, labels: Labels, *, blocks: Labels | None = None, folds: int = 5
) -> str | None:
    """Why `linear_probe_accuracy` of the same arguments is nan; None when it is a number.

    Raises:
        ValueError: as `linear_probe_accuracy`.

    Example:
        >>> linear_probe_undefined(torch.eye(3), ["a", "a", "b"])
        'needs at least 2 blocks for every label, got 1 for one of them'
    """
    return _undefined(*_prepared(embeddings, labels, blocks, folds))


def _prepared(
    embeddings: Embeddings, labels: Labels, blocks: Labels | None, folds: int
) -> tuple[Float64[Tensor, "n d"], Int64[Tensor, " n"], Int64[Tensor, " n"]]:
    if folds < 2:
        raise ValueError(f"folds: expected at least 2, got {folds}; 5 is a good number")
    points = centred(embeddings)
    n = points.shape[0]
    return points[:, _varying(embeddings, points)], label_codes(labels, n)[0], block_codes(blocks, n)


def _undefined(points: Float64[Tensor, "n d"], codes: Int64[Tensor, " n"], own: Int64[Tensor, " n"]) -> str | None:
    if int(codes.max()) == 0:
        return "needs at least 2 distinct labels, got 1"
    fewest = _fewest_blocks(codes, own)
    if fewest < 2:
        return f"needs at least 2 blocks for every label, got {fewest} for one of them"
    if points.shape[1] == 0:
        return "no dimension varies by more than its rounding"
    return None


def _fewest_blocks(codes: Int64[Tensor, " n"], own: Int64[Tensor, " n"]) -> int:
    """The number of blocks in which the rarest label occurs."""
    return int(torch.bincount(torch.unique(torch.stack([codes, own]), dim=1)[0]).min())


def _varying(embeddings: Embeddings, points: Float64[Tensor, "n d"]) -> Bool[Tensor, " d"]:
    """The dimensions that leave their mean by more than one unit in the last place; noise would count like the rest."""
    rows = checked(embeddings)
    return points.abs().amax(dim=0) > torch.finfo(rows.dtype).eps * rows.abs().amax(dim=0)


def _right(
    train: Float64[np.ndarray, "t d"],
    train_labels: Int64[np.ndarray, " t"],
    test: Float64[np.ndarray, "v d"],
    test_labels: Int64[np.ndarray, " v"],
) -> int:
    """How many of the held-out texts a probe fitted to the training texts gets right."""
    if len(np.unique(train_labels)) == 1 or len(test_labels) == 0:
        return int((test_labels == train_labels[0]).sum())
    mean, scale = train.mean(axis=0), train.std(axis=0)
    scale[scale <= np.finfo(np.float64).eps * np.abs(train).max(axis=0)] = np.inf
    fitted = LogisticRegression(max_iter=ITERATIONS)
    train, test = _narrowed((train - mean) / scale, (test - mean) / scale)
    return int((fitted.fit(train, train_labels).predict(test) == test_labels).sum())


def _narrowed(
    train: Float64[np.ndarray, "t d"], test: Float64[np.ndarray, "v d"]
) -> tuple[Float64[np.ndarray, "t r"], Float64[np.ndarray, "v r"]]:
    """Both in coordinates of the span of the training texts, where that is narrower.

    Exact: a direction that no training text has adds to the penalty of a weight vector and to nothing else, so that
    the fitted weights lie in the span, and lengths are the same in orthonormal coordinates.
    """
    if train.shape[1] <= train.shape[0]:
        return train, test
    basis, coordinates = np.linalg.qr(train.T)
    return coordinates.T, test @ basis
