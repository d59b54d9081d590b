"""What ClusteringMetrics logs is what scikit-learn says of the embeddings."""

import pytest
from lightning.pytorch import Callback
from sklearn.cluster import KMeans
from sklearn.metrics import davies_bouldin_score, silhouette_score

from callbacks.clustering_metrics import ClusteringMetrics
from evaluation.retention import debiased_cka


class Suite:
    texts = tuple(", ".join(map(str, range(at, at + step * 8, step))) for step in (1, 3, 10) for at in (1, 20, 50, 90))
    labels = tuple(label for label in range(3) for _ in range(4))


class Logged(Callback):
    def __init__(self):
        self.metrics = {}

    def on_train_end(self, trainer, pl_module):
        self.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_logged_columns_equal_scikit_learn(fit):
    logged = Logged()
    module = fit(steps=2, callbacks=[ClusteringMetrics({"small": Suite()}), logged])
    embeddings = module.encode(Suite.texts).numpy()
    clusters = KMeans(3, n_init=10, random_state=0).fit_predict(embeddings)
    expected = {
        "small/silhouette_true": silhouette_score(embeddings, Suite.labels),
        "small/davies_bouldin_true": davies_bouldin_score(embeddings, Suite.labels),
        "small/silhouette_kmeans": silhouette_score(embeddings, clusters),
        "small/davies_bouldin_kmeans": davies_bouldin_score(embeddings, clusters),
    }
    found = {name: value for name, value in logged.metrics.items() if name.startswith("small/")}
    assert found == pytest.approx(expected, abs=1e-5)


def test_undefined_values_are_logged_as_gaps(fit):
    class OneLabel:
        texts, labels = Suite.texts, (0,) * 12

    logged = Logged()
    fit(steps=1, callbacks=[ClusteringMetrics({"one": OneLabel()}), logged])
    assert logged.metrics["one/silhouette_true"] != logged.metrics["one/silhouette_true"]


def test_cka_to_the_base_is_logged_where_its_embeddings_are_given(fit):
    """Unchanged weights keep everything; trained ones what the function says of the same embeddings."""
    base, logged = [], Logged()

    class Before(Callback):
        def on_train_start(self, trainer, pl_module):
            base.append(pl_module.encode(Suite.texts))
            metrics.base_embeddings = {"small": base[0]}

    metrics = ClusteringMetrics({"small": Suite(), "other": Suite()})
    module = fit(steps=2, learning_rate=1e-2, callbacks=[Before(), metrics, logged])
    expected = debiased_cka(module.encode(Suite.texts), base[0])
    assert logged.metrics["small/cka"] == pytest.approx(expected, abs=1e-5)
    assert logged.metrics["small/cka"] < 0.9999
    assert "other/cka" not in logged.metrics
