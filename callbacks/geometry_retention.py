"""GeometryRetention: how much of the base model's geometry is left, and the shape of the embeddings, after every epoch."""

import math
from collections.abc import Sequence

from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.gathering import gathered_embeddings
from evaluation.geometry import geometry_report
from evaluation.labels import Labels
from evaluation.retention import retention_report


class GeometryRetention(Callback):
    """Logs ``retention/cka``, ``/rsa``, ``/knn`` and ``/procrustes`` against the base at the end of every epoch.

    Beside them ``geometry/anisotropy``, ``/effective_rank``, ``/uniformity`` and, where there are labels,
    ``/alignment``: retention says that the space has changed, these say how. What is undefined is logged as nan.

    Args:
        texts: n texts that the adaptation is not about.
        base_embeddings: The base model's embeddings of them, (n, d).
        labels: n labels of the texts, for the alignment.
    """

    def __init__(
        self, texts: Sequence[str], base_embeddings: Float[Tensor, "n d"], *, labels: Labels | None = None
    ) -> None:
        self.texts, self.base_embeddings, self.labels = texts, base_embeddings, labels

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and log."""
        embeddings = gathered_embeddings(pl_module, self.texts)
        geometry = geometry_report(embeddings, self.labels)
        if self.labels is None:
            del geometry["alignment"]
        for group, report in (
            ("retention", retention_report(embeddings, self.base_embeddings)),
            ("geometry", geometry),
        ):
            for measure, value in report.items():
                if not measure.endswith("reason"):
                    pl_module.log(f"{group}/{measure}", math.nan if value is None else value)
