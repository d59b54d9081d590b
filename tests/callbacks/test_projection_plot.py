"""ProjectionPlot: a picture an epoch, and one projector entry of the weights that the stage kept."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from torch.utils.data import DataLoader

from callbacks.projection_plot import ProjectionPlot
from callbacks.stage_checkpoint import StageCheckpoint

SUITE = SimpleNamespace(texts=[f"{i}, {i + 1}" for i in range(12)], labels=[i % 2 for i in range(12)])


class Drifting(LightningModule):
    """Embeds a text by its first number times a weight, and gets a worse score at every epoch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((3,), 1.1))

    def encode(self, texts):
        return torch.tensor([[float(text.split(",")[0])] for text in texts]) * self.weight

    def training_step(self, batch, index):
        self.log("score", -float(self.current_epoch), on_step=False, on_epoch=True)
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def fit(folder):
    """Two epochs of one step; the first is the best. Returns the module."""
    module = Drifting()
    checkpoint = StageCheckpoint(lambda metrics: None, monitor="score")
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=TensorBoardLogger(folder, name="tensorboard", version="1-stage"),
        callbacks=[ProjectionPlot("paper", SUITE, ("odd", "even")), checkpoint],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, DataLoader([torch.zeros(1)]))
    return module


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    fit(folder)
    return folder / "tensorboard" / "1-stage", fit(folder)


def test_every_epoch_has_a_picture(fitted):
    events = EventAccumulator(str(fitted[0]), size_guidance={"images": 0})
    events.Reload()
    assert {event.step for event in events.Images("projection/paper")} == {1, 2}


def test_the_projector_has_one_entry_of_the_weights_that_were_kept(fitted):
    folder, module = fitted
    (entry,) = text_format.Parse((folder / "projector_config.pbtxt").read_text(), ProjectorConfig()).embeddings
    assert (entry.tensor_name, list(entry.tensor_shape)) == ("paper", [12, 3])
    points = np.fromfile(folder / entry.tensor_path, "<f4").reshape(12, 3)
    np.testing.assert_allclose(points, np.outer(np.arange(12), [0.6] * 3), rtol=1e-6, err_msg="after one step of two")
    torch.testing.assert_close(module.weight.detach(), torch.full((3,), 0.6))
    table = (folder / entry.metadata_path).read_text().splitlines()
    assert table[:3] == ["family\ttext", "odd\t0, 1", "even\t1, 2"]
