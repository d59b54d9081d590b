"""The average of the weights: torch's own on the same updates, lent to measurements only, nothing of the base copied."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from callbacks.stage_checkpoint import StageCheckpoint
from callbacks.weight_average import Returned, WeightAverage


def trainable(module):
    return {name: weight.detach().clone() for name, weight in module.named_parameters() if weight.requires_grad}


class Steps(Callback):
    """Keeps the weights after every step, and those that measurements see at the end of each epoch."""

    def __init__(self):
        self.steps, self.measured = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append(trainable(pl_module))

    def on_train_epoch_end(self, trainer, pl_module):
        self.measured.append(trainable(pl_module))


class Save(Callback):
    """Saves the state after every epoch, behind all other callbacks."""

    def __init__(self, path):
        self.path = path

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.path, weights_only=False)


class Weights(nn.Module):
    """Named tensors as a model for torch's AveragedModel."""

    def __init__(self, tensors):
        super().__init__()
        self.held = nn.ParameterList([tensor.clone() for tensor in tensors.values()])

    def take(self, tensors):
        with torch.no_grad():
            for own, tensor in zip(self.held, tensors.values(), strict=True):
                own.copy_(tensor)


def averaged(steps, **kinds):
    """What torch's AveragedModel makes of the weights in ``steps``."""
    model = Weights(steps[0])
    average = AveragedModel(model, **kinds)
    for tensors in steps:
        model.take(tensors)
        average.update_parameters(model)
    return dict(zip(steps[0], [held.detach() for held in average.module.held], strict=True))


def run(fit, kind, *, epochs=2, steps=3, decay=0.7, **settings):
    seen, average = Steps(), WeightAverage(kind, total_steps=epochs * steps, decay=decay)
    module = fit(epochs=epochs, steps=steps, callbacks=[average, seen, Returned(average)], dropout=0.1, **settings)
    return SimpleNamespace(module=module, seen=seen, average=average)


@pytest.fixture
def plain(fit):
    """A run without an average."""
    seen = Steps()
    module = fit(epochs=2, steps=3, callbacks=[seen], dropout=0.1)
    return SimpleNamespace(module=module, seen=seen)


def same(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], **({"atol": 0, "rtol": 0} | tolerance))


def test_ema_is_torchs_from_zero_with_its_bias_taken_out(fit):
    found = run(fit, "ema")
    for epoch, count in enumerate((3, 6)):
        zeros = {name: torch.zeros_like(tensor) for name, tensor in found.seen.steps[0].items()}
        moved = averaged([zeros, *found.seen.steps[:count]], multi_avg_fn=get_ema_multi_avg_fn(0.7))
        unbiased = {name: tensor / (1 - 0.7**count) for name, tensor in moved.items()}
        same(found.seen.measured[epoch], unbiased, atol=1e-7, rtol=1e-5)


def test_swa_is_torchs_mean_over_the_second_half(fit):
    found = run(fit, "swa")
    same(found.seen.measured[0], found.seen.steps[2])
    same(found.seen.measured[1], averaged(found.seen.steps[3:]), atol=1e-7, rtol=1e-6)
    different = found.seen.measured[1], found.seen.steps[5]
    assert any(not torch.equal(different[0][name], different[1][name]) for name in different[0])


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_training_goes_on_as_if_there_were_no_average(fit, plain, kind):
    found = run(fit, kind)
    assert len(found.seen.steps) == len(plain.seen.steps) == 6
    for one, other in zip(found.seen.steps, plain.seen.steps, strict=True):
        same(one, other)
    same(trainable(found.module), trainable(plain.module))


def test_nothing_of_the_base_is_copied(fit):
    held = []

    class Bytes(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            every = [*average.averages.values(), *average._own.values()]
            held.append(sum(tensor.numel() * tensor.element_size() for tensor in every))

    average = WeightAverage("ema", total_steps=2)
    module = fit(steps=2, callbacks=[average, Bytes(), Returned(average)])
    adapter = sum(weight.numel() * 4 for weight in module.parameters() if weight.requires_grad)
    whole = sum(weight.numel() * 4 for weight in module.parameters())
    assert held == [2 * adapter]
    assert 2 * adapter < whole
    assert not average._own, "what was lent is given back"


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_a_resume_midway_ends_with_the_same_average(fit, kind, tmp_path):
    whole = run(fit, kind, epochs=4, steps=2)

    class Stop(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch == 2

    first = WeightAverage(kind, total_steps=8, decay=0.7)
    stopping = [first, Returned(first), Save(tmp_path / "state"), Stop()]
    fit(epochs=4, steps=2, callbacks=stopping, dropout=0.1)
    assert first.count == (6 if kind == "ema" else 2)
    resumed = run(fit, kind, epochs=4, steps=2, resume=tmp_path / "state")
    assert len(resumed.seen.steps) == 2
    same(resumed.average.averages, whole.average.averages)
    same(resumed.seen.measured[-1], whole.seen.measured[-1])
    assert resumed.average.count == whole.average.count


class AllWeights(LightningModule):
    """Every weight is trained, in bfloat16."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2, dtype=torch.bfloat16)

    def training_step(self, batch, batch_idx):
        return self.layer(batch.bfloat16()).float().square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.randn(6, 3, generator=torch.Generator().manual_seed(1)), batch_size=2)


def test_all_weights_in_bfloat16_are_averaged_in_float32():
    seen, average = Steps(), WeightAverage("ema", total_steps=3, decay=0.5)
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[average, seen, Returned(average)],
        enable_model_summary=False,
        **settings,
    )
    module = AllWeights()
    trainer.fit(module)
    for name, last in seen.steps[-1].items():
        weights = [0.5 ** (2 - i) * 0.5 * step[name].double() for i, step in enumerate(seen.steps)]
        expected = sum(weights) / (1 - 0.5**3)
        assert average.averages[name].dtype == torch.float32
        torch.testing.assert_close(average.averages[name].double(), expected, atol=1e-6, rtol=1e-6)
        assert torch.equal(seen.measured[0][name], expected.bfloat16())
        assert torch.equal(dict(module.named_parameters())[name], last)


def test_a_batch_without_a_step_is_not_counted(fit):
    average = WeightAverage("ema", total_steps=4)
    fit(steps=4, callbacks=[average, Returned(average)], accumulate_grad_batches=2)
    assert average.count == 2


def test_a_failure_while_measuring_leaves_the_weights_that_are_trained(fit):
    class Fails(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            self.module, self.lent = pl_module, trainable(pl_module)
            raise RuntimeError("a metric")

    seen, fails, average = Steps(), Fails(), WeightAverage("ema", total_steps=3)
    with pytest.raises(RuntimeError, match="a metric"):
        fit(steps=3, callbacks=[average, seen, fails, Returned(average)])
    same(trainable(fails.module), seen.steps[-1])
    assert any(not torch.equal(fails.lent[name], seen.steps[-1][name]) for name in fails.lent)


@pytest.mark.slow
def test_two_ranks_keep_the_average_of_one(fit):
    """The average is what the checkpoint puts back at the end."""

    def kept(**settings):
        average = WeightAverage("ema", total_steps=3, decay=0.7)
        keeping = StageCheckpoint(lambda _: None, monitor=None)
        return trainable(fit(steps=3, callbacks=[average, keeping, Returned(average)], **settings))

    one, plain = kept(), trainable(fit(steps=3))
    same(one, kept(devices=2), atol=1e-5, rtol=1e-4)
    assert any(not torch.allclose(one[name], plain[name], atol=1e-4) for name in one)
