"""Which cluster holds which label, once each label is given the cluster that suits all of them best.

Dimension names:
    k: distinct labels
    m: clusters found
"""

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from evaluation.codes import row_codes
from evaluation.labels import Labels, label_codes, label_values


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Counts of texts by label and cluster, the columns in the order of the labels they are matched with."""

    labels: tuple[Hashable, ...]
    """The labels, one a row, in order of first appearance."""
    matrix: Int64[Tensor, "k m"]
    """Texts of the label (row) in the cluster (column). Matched clusters first, in the order of their labels: with as
    many clusters as labels the matches are the diagonal. Surplus clusters last, in order of first appearance."""
    accuracy: float
    """The share of the texts that lie in the cluster matched with their label."""


def matched_confusion(labels: Labels, found: Labels) -> Confusion:
    """The confusion matrix under the one-to-one match of labels and clusters that makes the most texts agree.

    The match is the best in hindsight, so that chance gives more than one part in k: 24 texts in 6 labels and random
    clusters reach about 0.40. Compare with the `cluster_agreement` that is adjusted for chance.

    Args:
        labels: n labels, integers or strings.
        found: n clusters, such as those of `kmeans_labels`; more or fewer of them than labels are allowed.

    Returns:
        A `Confusion`; its accuracy lies in 0..1, best 1, and is always defined (a single label scores the share of its
        largest cluster). With fewer clusters than labels some labels have no match, and their texts count as wrong.

    Raises:
        ValueError: no labels, labels and clusters of different lengths, or missing ones (None, NaN).

    Reference:
        Kuhn, "The Hungarian method for the assignment problem", 1955.

    Example:
        >>> confusion = matched_confusion(["even", "even", "prime", "prime"], [1, 1, 0, 1])
        >>> confusion.labels, confusion.matrix.tolist(), confusion.accuracy
        (('even', 'prime'), [[2, 0], [1, 1]], 0.75)
    """
    values = label_values(labels)
    n = len(values)
    if n == 0:
        raise ValueError("labels: expected at least one, got none; give one label a text")
    rows, k = label_codes(labels, n)
    columns, m = row_codes(found, n, name="found")
    counts = torch.bincount(rows * m + columns, minlength=k * m).view(k, m)
    matched_rows, matched_columns = linear_sum_assignment(counts.numpy(), maximize=True)
    surplus = sorted(set(range(m)) - set(matched_columns.tolist()))
    return Confusion(
        labels=tuple(dict.fromkeys(values)),
        matrix=counts[:, [*matched_columns.tolist(), *surplus]],
        accuracy=int(counts[matched_rows, matched_columns].sum()) / n,
    )
