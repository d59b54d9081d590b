"""ProjectionPlot: a t-SNE picture of a suite in TensorBoard, after every epoch."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks.clustering_metrics import LabelledTexts
from callbacks.gathering import gathered_embeddings
from evaluation.projection import projection_figure


class ProjectionPlot(Callback):
    """Adds the figure ``projection/SUITE`` at the end of every epoch, on rank 0.

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
            labels = [self.classes[label] for label in self.suite.labels]
            title = f"{self.name} suite, epoch {trainer.current_epoch + 1}"
            figure = projection_figure(embeddings, labels, title, seed=self.seed)
            trainer.logger.experiment.add_figure(f"projection/{self.name}", figure, trainer.global_step)
