"""StageCheckpoint restores and saves the best epoch, not the last."""

import pytest
import torch
from lightning.pytorch import Callback

from callbacks.stage_checkpoint import StageCheckpoint


class Scores(Callback):
    """Logs a given score after each epoch and keeps that epoch's weights."""

    def __init__(self, scores):
        self.scores, self.weights = scores, []

    def on_train_epoch_end(self, trainer, pl_module):
        pl_module.log("score", self.scores[trainer.current_epoch])
        self.weights.append({name: tensor.clone() for name, tensor in pl_module.state_dict().items()})


@pytest.mark.parametrize(
    ("scores", "best"), [([0.1, 0.5, 0.3], 2), ([0.4, 0.2, 0.1], 1), ([float("nan"), 0.1, float("nan")], 2)]
)
def test_the_best_epoch_is_what_remains(fit, scores, best):
    saved = []
    logger = Scores(scores)
    module = fit(epochs=3, steps=2, callbacks=[logger, StageCheckpoint(saved.append, monitor="score")])
    assert len(saved) == 1
    assert saved[0]["best_epoch"] == best
    assert [epoch["epoch"] for epoch in saved[0]["epochs"]] == [1, 2, 3]
    assert [epoch["step"] for epoch in saved[0]["epochs"]] == [2, 4, 6]
    state = module.state_dict()
    assert all(torch.equal(state[name], logger.weights[best - 1][name]) for name in state)
    assert not all(torch.equal(state[name], logger.weights[best % 3][name]) for name in state)


def test_without_a_monitor_the_last_epoch_remains(fit):
    saved, logger = [], Scores([0.5, 0.4])
    module = fit(epochs=2, steps=2, callbacks=[logger, StageCheckpoint(saved.append, monitor=None)])
    assert saved[0]["best_epoch"] == 2
    state = module.state_dict()
    assert all(torch.equal(state[name], logger.weights[-1][name]) for name in state)
