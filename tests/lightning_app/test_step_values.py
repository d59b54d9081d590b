"""What a stage's trainer logs every so many steps, and that the host waits for the device in no other step."""

import sys

import pytest
import torch
from lightning.pytorch import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils._python_dispatch import TorchDispatchMode

from data.datamodule import LabelledDataModule
from lightning_app.config import StageConfig, TrainConfig
from lightning_app.module import ContrastiveEmbedder
from lightning_app.trainer import build_trainer
from models.embedder import load_embedder
from models.lora import add_lora
from tests.conftest import short_texts

EVERY = 4
COMPUTING = ("embed_parts", "_by_label")
"""The embedder and the loss: what they wait for is not a matter of logging."""


@pytest.fixture
def train(tiny_folder, tmp_path):
    """``train(policy, callbacks)``: two epochs of 6 steps, logged every 4; the folder of the curves."""

    def run(policy="stop", *callbacks):
        embedder = load_embedder(tiny_folder)
        add_lora(embedder, r=3, alpha=8, dropout=0.0, targets=["q_proj", "v_proj", "down_proj"])
        module = ContrastiveEmbedder(embedder, total_steps=12)
        data = LabelledDataModule(short_texts(), classes=4, per_class=4, batches=6, seed=0, collate=module.collate)
        config = TrainConfig(output=str(tmp_path), accelerator="cpu", log_every_n_steps=EVERY, non_finite=policy)
        stage = StageConfig(name="one", epochs=2, steps_per_epoch=6)
        trainer = build_trainer(config, stage, folder=tmp_path, name="1", callbacks=callbacks, selects=False)
        embedder.train()
        trainer.fit(module, datamodule=data)
        return tmp_path / "tensorboard" / "1"

    return run


class Asked(TorchDispatchMode):
    """Between `Listen`'s marks, the steps at whose end a value of a tensor had been asked for."""

    def __init__(self):
        super().__init__()
        self.trainer, self.steps = None, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            self.ask(args[0])
        return function(*args, **(kwargs or {}))

    def ask(self, tensor):
        if self.trainer is None:
            return
        # AdamW's counts of steps lie on the CPU wherever the weights are
        counts = [slots["step"] for slots in self.trainer.optimizers[0].state.values()]
        if not any(tensor is each for each in counts) and not any(name in COMPUTING for name in callers()):
            # Lightning logs a step after it has counted it
            self.steps.add(self.trainer.global_step)


def callers():
    frame = sys._getframe(1)
    while frame is not None:
        yield frame.f_code.co_name
        frame = frame.f_back


class Listen(Callback):
    """To the steps and not to what lies between two epochs."""

    def __init__(self, asked):
        self.asked = asked

    def on_train_epoch_start(self, trainer, pl_module):
        self.asked.trainer = trainer

    def on_train_epoch_end(self, trainer, pl_module):
        self.asked.trainer = None


def waits(train, monkeypatch, policy):
    asked, tolist = Asked(), torch.Tensor.tolist

    def told(tensor):  # the CPU's needs no operation for it
        asked.ask(tensor)
        return tolist(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", told)
    with asked:
        train(policy, Listen(asked))
    return asked.steps


def test_the_host_waits_for_logged_steps_only(train, monkeypatch):
    # the end of an epoch's last step is a look as well: nothing may be measured before it
    assert waits(train, monkeypatch, "stop") - {6, 12} == {4, 8}


def test_the_other_policies_look_at_every_step(train, monkeypatch):
    assert waits(train, monkeypatch, "skip") >= set(range(12))


@pytest.mark.parametrize(("policy", "own"), [("stop", ()), ("skip", ("skipped_steps",)), ("rollback", ("rollbacks",))])
def test_tags_and_steps_of_the_curves(train, policy, own):
    events = EventAccumulator(str(train(policy)))
    events.Reload()
    found = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert all(0 < event.value < 1 for event in events.Scalars("throughput/data_share"))
    found.pop("epoch")
    found.pop("hp_metric", None)
    rates = ("samples_per_second", "tokens_per_second", "tokens_per_step", "padding_share", "data_share")
    each = [f"train/{name}" for name in ("loss", "gradient_norm", "learning_rate", *own)]
    each += ["memory/host_peak_gib", *(f"throughput/{name}" for name in rates)]
    assert found == {tag: [3, 7, 11] for tag in each} | {"throughput/evaluation_seconds": [5, 11]}
