"""ProjectionPlot: a suite's embeddings in TensorBoard: a t-SNE picture after every epoch, the projector at the end."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks.clustering_metrics import LabelledTexts
from callbacks.gathering import gathered_embeddings
from evaluation.projection import projection_figure


class ProjectionPlot(Callback):
    """Adds the figure ``projection/SUITE`` at the end of every epoch, and the suite to the embedding projector at the end of fitting.

    Rank 0 writes. The projector has one entry a suite: a stage that is fitted again replaces it.

    Args:
        name: Of the suite.
        suite: Texts and labels.
        classes: Names of the labels.
        seed: Of t-SNE.
    """

    def __init__(self, name: str, suite: LabelledTexts, classes: tuple[str, ...], *, seed: int = 0) -> None:
        self.name, self.suite, self.classes, self.seed = name, suite, classes, seed

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Embed on all ranks, draw on the first."""
        embeddings = gathered_embeddings(pl_module, self.suite.texts)
        if trainer.is_global_zero and isinstance(trainer.logger, TensorBoardLogger):
            title = f"{self.name} suite, epoch {trainer.current_epoch + 1}"
            figure = projection_figure(embeddings, self._labels(), title, seed=self.seed)
            trainer.logger.experiment.add_figure(f"projection/{self.name}", figure, trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Embed with the weights that the stage kept: the best epoch's are put back before, when training ends."""
        embeddings = gathered_embeddings(pl_module, self.suite.texts)
        if trainer.is_global_zero and isinstance(trainer.logger, TensorBoardLogger):
            from evaluation.projector import write_projector

            metadata = {"family": self._labels(), "text": list(self.suite.texts)}
            write_projector(Path(trainer.logger.log_dir), self.name, embeddings, metadata)

    def _labels(self) -> list[str]:
        return [self.classes[label] for label in self.suite.labels]
