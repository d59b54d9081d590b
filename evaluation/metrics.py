"""The metrics of this package as `torchmetrics.Metric`, for Lightning's ``self.log`` and for several ranks.

All take ``update(embeddings, labels, indices=None)`` or ``update(embeddings, base_embeddings, indices=None)``, keep the
rows, and measure them together in ``compute``: the same function, the same rows in the same order, hence the same bits
on 1, 2 or 3 ranks.

``indices`` are the numbers of the rows in the data set (not in the batch). Give them whenever a sampler may pad: only
they tell a copy that was added to fill a rank from a second text that embeds alike. Without them every row counts, and
rows are put into an order of their own.

``compute`` returns a 0-d float64 tensor on the metric's device, nan where the function returns nan. Labels, blocks and
indices are integer tensors; a label of -1 is a missing one and refused. The names are not exported by the package: a
function and its class would differ in their capitals only.

Example:
    >>> metric = SilhouetteScore()
    >>> metric.update(torch.tensor([[0.0], [10.0]]), torch.tensor([0, 1]), torch.tensor([0, 2]))
    >>> metric.update(torch.tensor([[1.0], [11.0], [11.0]]), torch.tensor([0, 1, 1]), torch.tensor([1, 3, 3]))
    >>> round(float(metric.compute()), 4)
    0.8997

Dimension names:
    n: rows of one update
    d: embedding width
    e: width of the base embeddings
"""

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64, Integer
from torch import Tensor

from evaluation.agreement import cluster_agreement
from evaluation.centring import checked
from evaluation.clustering import calinski_harabasz_score, davies_bouldin_score, silhouette_score
from evaluation.kmeans import kmeans_labels
from evaluation.linear_probe import linear_probe_accuracy
from evaluation.neighbours import neighbour_accuracy
from evaluation.retention import NEIGHBOURS, debiased_cka, knn_overlap, procrustes_similarity, rsa
from evaluation.row_metric import RowMetric, whole_numbers

Rows = Float[Tensor, "_n _d"]
Numbers = Integer[Tensor, " _n"]


class LabelledMetric(RowMetric):
    """A metric of embeddings and labels; a subclass has the ``score``."""

    def update(self, embeddings: Rows, labels: Numbers, indices: Numbers | None = None) -> None:
        """Add rows.

        Args:
            embeddings: (n, d), any floating dtype; the same d and dtype in every update.
            labels: n integers from 0.
            indices: n numbers of the rows in the data set; see the module.

        Raises:
            ValueError: embeddings that are not a finite matrix, labels or indices that do not match them or are
                negative, or another width or dtype than before.
        """
        self.keep(indices, embeddings=_matrix("embeddings", embeddings), labels=whole_numbers("labels", labels))


class SilhouetteScore(LabelledMetric):
    """`silhouette_score` over all updates: -1..1, best 1."""

    higher_is_better = True
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0

    def __init__(self, *, metric: str = "euclidean", **kwargs: Any) -> None:
        """Choose the distance; ``kwargs`` are those of `torchmetrics.Metric`."""
        super().__init__(**kwargs)
        self.metric = _known(metric)

    def score(self, **rows: Tensor) -> float:
        return silhouette_score(rows["embeddings"], rows["labels"], metric=self.metric)


class DaviesBouldinScore(LabelledMetric):
    """`davies_bouldin_score` over all updates: 0..infinity, best 0 (torchmetrics' own says that higher is better)."""

    higher_is_better = False
    plot_lower_bound = 0.0

    def score(self, **rows: Tensor) -> float:
        return davies_bouldin_score(rows["embeddings"], rows["labels"])


class CalinskiHarabaszScore(LabelledMetric):
    """`calinski_harabasz_score` over all updates: 0..infinity, higher is better."""

    higher_is_better = True
    plot_lower_bound = 0.0

    def score(self, **rows: Tensor) -> float:
        return calinski_harabasz_score(rows["embeddings"], rows["labels"])


class KMeansAgreement(LabelledMetric):
    """`cluster_agreement` of the labels with the KMeans clusters, as many as there are labels: best 1, chance 0."""

    higher_is_better = True
    plot_upper_bound = 1.0

    def __init__(self, *, measure: str = "ami", seed: int = 0, **kwargs: Any) -> None:
        """Choose the measure and the seed of KMeans; ``kwargs`` are those of `torchmetrics.Metric`."""
        super().__init__(**kwargs)
        if measure not in ("ari", "nmi", "ami"):
            raise ValueError(f'measure: expected "ari", "nmi" or "ami", got {measure!r}; choose one')
        self.measure, self.seed = measure, seed

    def score(self, **rows: Tensor) -> float:
        found = kmeans_labels(rows["embeddings"], torch.unique(rows["labels"]).numel(), seed=self.seed)
        return cluster_agreement(rows["labels"], found)[self.measure]


class BlockedMetric(RowMetric):
    """A metric of embeddings, labels and the blocks that texts were cut from; a subclass has the ``score``."""

    columns: ClassVar[tuple[str, ...]] = ("embeddings", "labels", "blocks")
    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def update(
        self, embeddings: Rows, labels: Numbers, indices: Numbers | None = None, blocks: Numbers | None = None
    ) -> None:
        """Add rows.

        Args:
            embeddings: (n, d), any floating dtype; the same d and dtype in every update.
            labels: n integers from 0.
            indices: n numbers of the rows in the data set; see the module.
            blocks: n integers from 0, the same for texts of one block in all updates and on all ranks; None: each of
                these texts is a block of its own.

        Raises:
            ValueError: embeddings that are not a finite matrix, labels, indices or blocks that do not match them or
                are negative, or another width or dtype than before.
        """
        matrix = _matrix("embeddings", embeddings)
        own = torch.full(matrix.shape[:1], _ALONE) if blocks is None else whole_numbers("blocks", blocks)
        self.keep(indices, embeddings=matrix, labels=whole_numbers("labels", labels), blocks=own)


class NeighbourAccuracy(BlockedMetric):
    """`neighbour_accuracy` over all updates: 0..1, best 1."""

    def __init__(self, *, k: int = 1, metric: str = "euclidean", **kwargs: Any) -> None:
        """Choose the neighbours that vote and the distance; ``kwargs`` are those of `torchmetrics.Metric`."""
        super().__init__(**kwargs)
        if k < 1:
            raise ValueError(f"k: expected at least 1 neighbour, got {k}; 1 and 5 are good numbers")
        self.k, self.metric = k, _known(metric)

    def score(self, **rows: Tensor) -> float:
        blocks = _named(rows["blocks"])
        return neighbour_accuracy(rows["embeddings"], rows["labels"], blocks=blocks, k=self.k, metric=self.metric)


class LinearProbeAccuracy(BlockedMetric):
    """`linear_probe_accuracy` over all updates: 0..1, best 1."""

    def __init__(self, *, folds: int = 5, seed: int = 0, **kwargs: Any) -> None:
        """Choose the folds and the seed of their deal; ``kwargs`` are those of `torchmetrics.Metric`."""
        super().__init__(**kwargs)
        if folds < 2:
            raise ValueError(f"folds: expected at least 2, got {folds}; 5 is a good number")
        self.folds, self.seed = folds, seed

    def score(self, **rows: Tensor) -> float:
        blocks = _named(rows["blocks"])
        return linear_probe_accuracy(
            rows["embeddings"], rows["labels"], blocks=blocks, folds=self.folds, seed=self.seed
        )


class RetentionMetric(RowMetric):
    """A metric of embeddings beside those of a base model for the same texts; a subclass has the ``score``."""

    columns: ClassVar[tuple[str, ...]] = ("embeddings", "base_embeddings")
    higher_is_better = True
    plot_upper_bound = 1.0

    def update(self, embeddings: Rows, base_embeddings: Rows, indices: Numbers | None = None) -> None:
        """Add rows.

        Args:
            embeddings: (n, d), any floating dtype; the same d and dtype in every update.
            base_embeddings: (n, e), the same texts in the same order, by the base model.
            indices: n numbers of the rows in the data set; see the module.

        Raises:
            ValueError: matrices that are not finite or differ in their number of rows, indices that do not match them
                or are negative, or another width or dtype than before.
        """
        matrix, base = _matrix("embeddings", embeddings), _matrix("base_embeddings", base_embeddings)
        self.keep(indices, embeddings=matrix, base_embeddings=base)


class DebiasedCKA(RetentionMetric):
    """`debiased_cka` over all updates: at most 1, best 1; unrelated embeddings about 0."""

    def score(self, **rows: Tensor) -> float:
        return debiased_cka(rows["embeddings"], rows["base_embeddings"])


class RSA(RetentionMetric):
    """`rsa` over all updates: -1..1, best 1."""

    plot_lower_bound = -1.0

    def score(self, **rows: Tensor) -> float:
        return rsa(rows["embeddings"], rows["base_embeddings"])


class KNNOverlap(RetentionMetric):
    """`knn_overlap` over all updates: 0..1, best 1."""

    plot_lower_bound = 0.0

    def __init__(self, *, k: int = NEIGHBOURS, **kwargs: Any) -> None:
        """Choose the neighbours compared; ``kwargs`` are those of `torchmetrics.Metric`."""
        super().__init__(**kwargs)
        if k < 1:
            raise ValueError(f"k: expected at least 1 neighbour, got {k}; {NEIGHBOURS} is a good number")
        self.k = k

    def score(self, **rows: Tensor) -> float:
        return knn_overlap(rows["embeddings"], rows["base_embeddings"], k=self.k)


class ProcrustesSimilarity(RetentionMetric):
    """`procrustes_similarity` over all updates: 0..1, best 1."""

    plot_lower_bound = 0.0

    def score(self, **rows: Tensor) -> float:
        return procrustes_similarity(rows["embeddings"], rows["base_embeddings"])


_ALONE = -1
"""Stands for the block of a text that is one of its own."""


def _named(blocks: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """The blocks, texts that stand alone each with a number of its own."""
    alone = blocks == _ALONE
    return torch.where(alone, blocks.max() + alone.cumsum(0), blocks)


def _matrix(name: str, embeddings: Rows) -> Float[Tensor, "n d"]:
    """The rows checked; none at all, as on a rank that has run out of texts, is no mistake here."""
    return embeddings if embeddings.ndim == 2 and embeddings.shape[0] == 0 else checked(embeddings, name=name)


def _known(metric: str) -> str:
    if metric not in ("euclidean", "cosine"):
        raise ValueError(f'metric: expected "euclidean" or "cosine", got {metric!r}; choose one')
    return metric
