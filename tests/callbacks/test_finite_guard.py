"""A loss that is not finite stops the run before it reaches the weights."""

import pytest
import torch

from callbacks.finite_guard import FiniteGuard, NonFiniteLoss
from lightning_app.module import ContrastiveEmbedder


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_stops_at_the_step(fit, monkeypatch, bad):
    before = {}
    original = ContrastiveEmbedder.training_step

    def poisoned(self, batch, batch_idx):
        loss = original(self, batch, batch_idx)
        if self.global_step == 2:
            before.update({name: tensor.clone() for name, tensor in self.state_dict().items()})
            poisoned.module = self
            return loss * bad
        return loss

    monkeypatch.setattr(ContrastiveEmbedder, "training_step", poisoned)
    with pytest.raises(NonFiniteLoss, match=r"expected a finite number, got (nan|inf) in epoch 0, step 2"):
        fit(steps=5, callbacks=[FiniteGuard()])
    after = poisoned.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_lets_finite_losses_through(fit):
    fit(steps=2, callbacks=[FiniteGuard()])
