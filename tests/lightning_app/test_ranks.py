"""Two gloo ranks and one process: the same gradients, the same weights, the same metrics."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from callbacks.gathering import gathered_embeddings
from storage.tensor_file import read_tensors, write_tensors


class Snapshots(Callback):
    """Keeps the trainable weights after given steps."""

    def __init__(self, steps):
        self.steps, self.kept = steps, {}

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step in self.steps:
            self.kept[trainer.global_step] = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}


class Gradients(Callback):
    """Writes rank 0's gradients, as the optimiser would see them before clipping."""

    def __init__(self, file: Path):
        self.file = file

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.is_global_zero:
            grads = {name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None}
            write_tensors(self.file, grads)


def test_gradients_do_not_depend_on_the_number_of_ranks(fit, tmp_path):
    snapshots = Snapshots({1, 10, 100})
    fit(steps=100, callbacks=[snapshots])
    assert sorted(snapshots.kept) == [1, 10, 100]
    for step, weights in snapshots.kept.items():
        found = []
        for devices in (1, 2):
            file = tmp_path / f"{step}-{devices}.safetensors"
            fit(steps=1, devices=devices, weights=weights, first_epoch_seed=step, callbacks=[Gradients(file)])
            found.append(read_tensors(file))
        one, two = found
        assert one.keys() == two.keys()
        assert max(g.abs().max() for g in one.values()) > 1e-3, "a comparison of zeros shows nothing"
        for name in one:
            torch.testing.assert_close(
                two[name], one[name], atol=1e-5, rtol=0, msg=lambda m, n=name, s=step: f"{s} {n}: {m}"
            )


def test_weights_after_twenty_steps_agree(fit):
    one = fit(steps=20, max_steps=20).state_dict()
    two = fit(steps=20, max_steps=20, devices=2).state_dict()
    assert one.keys() == two.keys()
    for name in one:
        difference = (one[name] - two[name]).norm() / one[name].norm()
        assert difference < 1e-4, f"{name}: {difference:.2e}"


class Gathered(Callback):
    """Writes what each rank gathers of 11 texts (two ranks do not divide them)."""

    def __init__(self, folder: Path):
        self.folder = folder

    def on_train_epoch_end(self, trainer, pl_module):
        texts = [", ".join(map(str, range(at, at + 9))) for at in range(11)]
        write_tensors(self.folder / f"{trainer.global_rank}", {"e": gathered_embeddings(pl_module, texts)})


@pytest.mark.parametrize("devices", [1, 2])
def test_metrics_do_not_depend_on_the_number_of_ranks(fit, tmp_path, devices):
    module = fit(steps=1, devices=devices, learning_rate=0.0, callbacks=[Gathered(tmp_path)])
    texts = [", ".join(map(str, range(at, at + 9))) for at in range(11)]
    expected = module.encode(texts)
    for rank in range(devices):
        torch.testing.assert_close(read_tensors(tmp_path / f"{rank}")["e"], expected, atol=1e-6, rtol=0)
