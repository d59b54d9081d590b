"""What TensorBoard's own reader finds of a row."""

import io
import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin
from torch.utils.tensorboard import SummaryWriter
from werkzeug.test import Client

from evaluation.projection import projection_figure
from lightning_app.tensorboard import EVENTS, log_model, log_row, row_scalars, silhouette_figure

ROW = {
    "name": "base",
    "dimensions": 8,
    "silhouette_true": 0.1234,
    "davies_bouldin_true": None,
    "davies_bouldin_true_reason": "coinciding centroids",
    "silhouette_kmeans": 0.2,
    "davies_bouldin_kmeans": 1.5,
    "calinski_harabasz_true": 3.0,
    "nn1_accuracy": 0.5,
    "kmeans_ami": 0.1,
    "null": {"mean": -0.1, "sd": 0.03, "z": 7.25, "p": 0.001},
    "interval": None,
    "interval_reason": "too few windows",
    "kmeans_spread": {"seeds": 20, "silhouette": {"mean": 0.2}},
    "silhouette_by_family": {"primes": 0.3, "even": -0.1, "$odd_": None},
    "suites": {
        "large": {"silhouette_true": 0.4567, "null": {"z": 3.0, "p": 0.01}, "interval": {"low": 0.4, "high": 0.5}},
        "held-out": {"silhouette_true": None, "silhouette_true_reason": "one label"},
        "matched": None,
        "matched_reason": "not asked for",
    },
    "retention": {"cka": 0.9876, "knn": None, "knn_reason": "too few"},
    "geometry": {"anisotropy": 0.5, "effective_rank": 3.5},
    "benchmarks": {"STS17": 0.8},
    "lengths": [{"terms": 10, "silhouette_true": 0.05}, {"terms": 400, "silhouette_true": None}],
}
EXPECTED = {
    "paper/silhouette_true": 0.1234,
    "paper/silhouette_kmeans": 0.2,
    "paper/davies_bouldin_kmeans": 1.5,
    "paper/calinski_harabasz_true": 3.0,
    "paper/nn1_accuracy": 0.5,
    "paper/kmeans_ami": 0.1,
    "paper/null_z": 7.25,
    "paper/null_p": 0.001,
    "paper/silhouette_by_family/primes": 0.3,
    "paper/silhouette_by_family/even": -0.1,
    "large/silhouette_true": 0.4567,
    "large/null_z": 3.0,
    "large/null_p": 0.01,
    "large/interval_low": 0.4,
    "large/interval_high": 0.5,
    "retention/cka": 0.9876,
    "geometry/anisotropy": 0.5,
    "geometry/effective_rank": 3.5,
    "benchmarks/STS17": 0.8,
    "length/10": 0.05,
}


def read(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def scalars(folder):
    events = read(folder)
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def cloud(n=24, seed=0):
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))


def test_every_number_of_the_row_is_a_point_and_nothing_undefined_is():
    assert row_scalars(ROW) == EXPECTED
    assert row_scalars({**ROW, "retention": None, "suites": {}, "lengths": None}).keys() < EXPECTED.keys()
    assert row_scalars({"silhouette_true": math.nan, "null": None}) == {}


def test_tensorboard_reads_the_points(tmp_path):
    log_row(tmp_path, ROW)
    assert scalars(tmp_path) == {tag: [(0, pytest.approx(value))] for tag, value in EXPECTED.items()}


def test_a_second_call_replaces_the_first(tmp_path):
    log_row(tmp_path, ROW)
    log_row(tmp_path, {"silhouette_true": 0.9})
    assert scalars(tmp_path) == {"paper/silhouette_true": [(0, pytest.approx(0.9))]}
    assert [file.name for file in tmp_path.iterdir()] == [EVENTS]


def test_the_curves_of_a_stage_keep_their_tags(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        for step in (1, 3):
            writer.add_scalar("paper/silhouette_true", step / 10, step)
    for _ in range(2):
        log_model(tmp_path, ROW, figure=Figure(), embeddings=cloud(), metadata={})
    found = scalars(tmp_path)
    assert found.pop("paper/silhouette_true") == [(1, pytest.approx(0.1)), (3, pytest.approx(0.3))]
    assert found.keys() == {f"final/{tag}" for tag in EXPECTED}
    assert read(tmp_path).Tags()["images"] == ["final/projection/paper", "final/silhouette/paper"]


def test_a_model_has_its_pictures_and_one_projector_entry(tmp_path):
    labels = ["primes", "even"] * 12
    for seed in (0, 1):
        points = cloud(seed=seed)
        figure = projection_figure(points, labels, "base")
        log_model(tmp_path, ROW, figure=figure, embeddings=points, metadata={"family": labels, "text": ["1, 2"] * 24})
    events = read(tmp_path)
    assert events.Tags()["images"] == ["projection/paper", "silhouette/paper"]
    for tag in events.Tags()["images"]:
        (image,) = events.Images(tag)
        assert imread(io.BytesIO(image.encoded_image_string)).shape[:2] == (image.height, image.width)
    info = Client(ProjectorPlugin(TBContext(logdir=str(tmp_path))).get_plugin_apps()["/info"])
    (entry,) = info.get("/info", query_string={"run": "."}).get_json(force=True)["embeddings"]
    assert entry["tensorName"] == "paper"
    assert np.array_equal(np.fromfile(tmp_path / entry["tensorPath"], "<f4").reshape(24, 8), cloud(seed=1).numpy())


def test_without_families_there_is_no_picture_of_them(tmp_path):
    row = {"silhouette_true": 0.1, "silhouette_by_family": {"a": None}}
    log_model(tmp_path, row, figure=Figure(), embeddings=cloud(), metadata={})
    assert read(tmp_path).Tags()["images"] == ["projection/paper"]


def test_the_bars_are_the_families_in_order():
    axes = silhouette_figure(ROW).axes[0]
    assert [bar.get_width() for bar in axes.patches[-2:]] == [0.3, -0.1]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["primes", "even"]
    assert silhouette_figure({"silhouette_by_family": {"$a_$": 0.5}}).axes[0].get_yticklabels()[0].get_text() == "$a_$"
