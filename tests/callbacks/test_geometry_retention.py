"""Retention is 1 before the weights change, and falls when they do."""

import pytest
from lightning.pytorch import Callback

from callbacks.geometry_retention import GeometryRetention

TEXTS = tuple(", ".join(map(str, range(at, at + step * 8, step))) for step in (1, 2, 3, 10) for at in (1, 20, 50, 90))


class Logged(Callback):
    def on_train_end(self, trainer, pl_module):
        self.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize(("rate", "kept"), [(0.0, True), (0.05, False)])
def test_retention_against_the_base(fit, tiny_folder, rate, kept):
    from models.embedder import encode, load_embedder

    logged = Logged()
    base = encode(load_embedder(tiny_folder), TEXTS)
    fit(steps=5, learning_rate=rate, callbacks=[GeometryRetention(TEXTS, base), logged])
    measures = {name: value for name, value in logged.metrics.items() if name.startswith("retention/")}
    assert measures.keys() == {"retention/cka", "retention/rsa", "retention/knn", "retention/procrustes"}
    if kept:
        assert measures == pytest.approx(dict.fromkeys(measures, 1.0), abs=1e-6)
    else:
        assert max(measures.values()) < 0.999
