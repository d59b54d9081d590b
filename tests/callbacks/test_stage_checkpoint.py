"""StageCheckpoint restores and saves the best epoch, not the last."""

import pytest
import torch
from lightning.pytorch import Callback

from callbacks.stage_checkpoint import StageCheckpoint, floored_score


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


class Kept(Callback):
    """Logs a score and what is retained after each epoch."""

    def __init__(self, scores, kept):
        self.scores, self.kept = scores, kept

    def on_train_epoch_end(self, trainer, pl_module):
        pl_module.log("score", self.scores[trainer.current_epoch])
        pl_module.log("kept", self.kept[trainer.current_epoch])


@pytest.mark.parametrize(
    ("scores", "kept", "best", "reached"),
    [
        ([0.1, 0.9, 0.3], [0.95, 0.5, 0.91], 3, True),  # the most separated epoch has lost too much
        ([0.1, 0.9, 0.3], [0.5, 0.4, 0.6], 3, False),  # none keeps enough: the one that keeps most
        ([0.9, 0.8, 0.3], [float("nan"), -0.2, float("nan")], 2, False),
        ([-0.9, -0.8, 0.3], [0.91, 0.91, 0.89], 2, True),  # however badly it separates
    ],
)
def test_with_a_floor_the_best_epoch_keeps_enough(fit, scores, kept, best, reached):
    saved = []
    checkpoint = StageCheckpoint(saved.append, monitor="score", retention="kept", floor=0.9, score="ranked")
    fit(epochs=3, steps=1, callbacks=[Kept(scores, kept), checkpoint])
    assert (saved[0]["best_epoch"], saved[0]["retention_floor_reached"]) == (best, reached)


def test_only_epochs_above_the_floor_put_off_the_end(fit):
    """What is kept rises below the floor, which is no reason to go on."""
    from lightning_app.config import StageConfig
    from lightning_app.trainer import early_stopping

    saved = []
    stage = StageConfig(name="a", patience=2, retention_floor=0.9)
    callbacks = [
        Kept([0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.6, 0.7, 0.8, 0.85]),
        StageCheckpoint(saved.append, monitor="score", retention="kept", floor=0.9),
        early_stopping(stage),
    ]
    fit(epochs=5, steps=1, callbacks=callbacks)
    assert [epoch["epoch"] for epoch in saved[0]["epochs"]] == [1, 2]


def test_without_a_floor_nothing_is_said_of_it(fit):
    saved = []
    fit(epochs=1, steps=1, callbacks=[Kept([0.1], [0.2]), StageCheckpoint(saved.append, monitor="score")])
    assert "retention_floor_reached" not in saved[0]
    assert "selection/score" not in saved[0]["epochs"][0]


def test_epochs_below_the_floor_rank_below_every_silhouette():
    assert floored_score(-1.0, 0.9, 0.9) > floored_score(1.0, 0.8999, 0.9) > floored_score(1.0, 0.1, 0.9)
    assert floored_score(0.3, float("nan"), 0.0) == 0.3
    assert floored_score(0.3, -0.1, 0.0) == 0.3
