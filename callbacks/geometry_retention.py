"""GeometryRetention: how much of the base model's geometry is left, after every epoch."""

import math
from collections.abc import Sequence

from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.gathering import gathered_embeddings
from evaluation.retention import retention_report


class GeometryRetention(Callback):
    """Logs ``retention/cka``, ``/rsa``, ``/knn`` and ``/procrustes`` against the base at the end of every epoch.

    Args:
        texts: n texts that the adaptation is not about.
        base_embeddings: The base model's embeddings of them, (n, d).
    """

    def __init__(self, texts: Sequence[str], base_embeddings: Float[Tensor, "n d"]) -> None:
        self.texts, self.base_embeddings = texts, base_embeddings

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and log."""
        report = retention_report(gathered_embeddings(pl_module, self.texts), self.base_embeddings)
        for measure, value in report.items():
            if not measure.endswith("reason"):
                pl_module.log(f"retention/{measure}", math.nan if value is None else value)
