"""ClusteringMetrics: Silhouette and Davies-Bouldin, true and KMeans labels, after every epoch."""

import math
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.gathering import gathered_embeddings
from evaluation.clustering import clustering_report
from evaluation.retention import debiased_cka


@runtime_checkable
class LabelledTexts(Protocol):
    """What a suite offers here."""

    @property
    def texts(self) -> Sequence[str]: ...
    @property
    def labels(self) -> Sequence[int]: ...


class ClusteringMetrics(Callback):
    """Logs ``SUITE/silhouette_true``, ``SUITE/davies_bouldin_true`` and the two KMeans columns at the end of every epoch.

    Every rank computes the same values from the same gathered embeddings, so that a callback that stops the run may read them on
    any rank. An undefined value is logged as nan, which TensorBoard draws as a gap.

    Args:
        suites: Name -> texts and labels.
        seed: Of KMeans.
        base_embeddings: Name -> the base's embeddings of that suite, (n, d): its debiased CKA to them is logged as ``SUITE/cka``.
    """

    def __init__(
        self,
        suites: Mapping[str, LabelledTexts],
        *,
        seed: int = 0,
        base_embeddings: Mapping[str, Float[Tensor, "n d"]] | None = None,
    ) -> None:
        self.suites, self.seed, self.base_embeddings = suites, seed, base_embeddings or {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and log."""
        for name, suite in self.suites.items():
            embeddings = gathered_embeddings(pl_module, suite.texts)
            report = clustering_report(embeddings, suite.labels, seed=self.seed, permutations=0)
            for column, value in report.items():
                if column.startswith(("silhouette", "davies_bouldin")) and not column.endswith("reason"):
                    logged = math.nan if value is None else value
                    pl_module.log(f"{name}/{column}", logged, prog_bar=column == "silhouette_true")
            if name in self.base_embeddings:
                pl_module.log(f"{name}/cka", debiased_cka(embeddings, self.base_embeddings[name]))
