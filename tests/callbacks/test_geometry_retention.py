"""Retention is 1 before the weights change, and falls when they do; the geometry is logged beside it."""

import pytest
from lightning.pytorch import Callback

from callbacks.geometry_retention import GeometryRetention
from evaluation import geometry_report

TEXTS = tuple(", ".join(map(str, range(at, at + step * 8, step))) for step in (1, 2, 3, 10) for at in (1, 20, 50, 90))
STEPS = [step for step in (1, 2, 3, 10) for _ in range(4)]


class Logged(Callback):
    def on_train_end(self, trainer, pl_module):
        self.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}

    def under(self, group):
        return {name.removeprefix(group): value for name, value in self.metrics.items() if name.startswith(group)}


@pytest.fixture(scope="module")
def base(tiny_folder):
    from models.embedder import encode, load_embedder

    return encode(load_embedder(tiny_folder), TEXTS)


@pytest.mark.parametrize(("rate", "kept"), [(0.0, True), (0.05, False)])
def test_retention_against_the_base(fit, base, rate, kept):
    logged = Logged()
    fit(steps=5, learning_rate=rate, callbacks=[GeometryRetention(TEXTS, base), logged])
    measures = logged.under("retention/")
    assert measures.keys() == {"cka", "rsa", "knn", "procrustes"}
    if kept:
        assert measures == pytest.approx(dict.fromkeys(measures, 1.0), abs=1e-6)
    else:
        assert max(measures.values()) < 0.999
    assert logged.under("geometry/").keys() == {"anisotropy", "effective_rank", "uniformity"}


def test_the_geometry_is_that_of_the_trained_embeddings(fit, base):
    logged = Logged()
    fit(steps=1, learning_rate=0.0, callbacks=[GeometryRetention(TEXTS, base, labels=STEPS), logged])
    assert logged.under("geometry/") == pytest.approx(geometry_report(base, STEPS), rel=1e-4)
