"""The projector's files, read by TensorBoard's own plugin through its own routes."""

import json

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin
from torch.utils.tensorboard import SummaryWriter
from werkzeug.test import Client

from evaluation.projector import CONFIG, EMPTY, write_projector


def served(folder, route, **query):
    """What TensorBoard answers for the run '.', the folder itself."""
    application = ProjectorPlugin(TBContext(logdir=str(folder))).get_plugin_apps()[route]
    answer = Client(application).get(route, query_string={"run": ".", **query})
    assert answer.status_code == 200, answer.text
    return answer


def entries(folder):
    found = served(folder, "/info").get_json(force=True)
    return {entry["tensorName"]: tuple(entry["tensorShape"]) for entry in found["embeddings"]}


def tensor(folder, name="paper"):
    return np.frombuffer(served(folder, "/tensor", name=name).data, "<f4").reshape(entries(folder)[name])


def shown(text):
    """The points as the page's own parser takes them: blank lines skipped, a first line with a tab is the header."""
    lines = [line for line in text.split("\n") if line.strip()]
    header = lines.pop(0).split("\t") if "\t" in lines[0] else ["label"]
    return [dict(zip(header, line.split("\t"), strict=True)) for line in lines]


def cloud(n=24, d=8, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tensorboard_serves_the_model_s_numbers(tmp_path, dtype):
    points = cloud().to(dtype)
    file = write_projector(
        tmp_path, "paper", points, {"family": ["a", "b"] * 12, "text": [f"{i}, 2" for i in range(24)]}
    )
    assert file.suffix == ".bytes"
    assert file.stat().st_size == 24 * 8 * 4
    assert served(tmp_path, "/runs").get_json() == ["."]
    assert entries(tmp_path) == {"paper": (24, 8)}
    assert np.array_equal(tensor(tmp_path), points.float().numpy())
    table = shown(served(tmp_path, "/metadata", name="paper").text)
    assert table == [{"family": "ab"[i % 2], "text": f"{i}, 2"} for i in range(24)]


@pytest.mark.parametrize(
    "points", [np.zeros((6, 4)), np.full((6, 4), 0.5), np.array([[10.0, 3e-44], [0.0, 2.0], [0.5, -2.0]])]
)
def test_numbers_whose_bytes_are_text_are_served_too(tmp_path, points):
    """TensorBoard tries every tensor's file as text first, and a float of 0x0a bytes is a line of it."""
    write_projector(tmp_path, "paper", points, {})
    assert np.array_equal(tensor(tmp_path), points.astype("<f4"))


def test_a_name_has_one_entry_and_one_pair_of_files(tmp_path):
    for seed in range(3):
        write_projector(tmp_path, "paper", cloud(seed=seed), {"label": [str(seed)] * 24})
        write_projector(tmp_path, "large", cloud(30, seed=seed), {})
    write_projector(tmp_path, "paper", cloud(10), {"label": list("abcdefghij")})
    assert list(entries(tmp_path).items()) == [("paper", (10, 8)), ("large", (30, 8))]
    assert len(list((tmp_path / "projector").iterdir())) == 3
    assert np.array_equal(tensor(tmp_path), cloud(10).numpy())
    assert [point["label"] for point in shown(served(tmp_path, "/metadata", name="paper").text)] == list("abcdefghij")


def test_the_summary_writer_s_duplicates_are_what_is_avoided(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        for seed in (0, 1):
            writer.add_embedding(cloud(seed=seed), tag="mine")
        writer.add_embedding(cloud(), tag="other")
    config = text_format.Parse((tmp_path / CONFIG).read_text(), ProjectorConfig())
    names = [entry.tensor_name for entry in config.embeddings]
    assert names.count("mine:00000") == 2, "the fault"
    write_projector(tmp_path, "paper", cloud(), {})
    write_projector(tmp_path, "paper", cloud(), {})
    config = text_format.Parse((tmp_path / CONFIG).read_text(), ProjectorConfig())
    assert [entry.tensor_name for entry in config.embeddings] == [*names, "paper"]
    assert (tmp_path / config.embeddings[2].tensor_path).is_file(), "files of others stay"


def test_duplicates_of_the_name_become_one(tmp_path):
    twice = 'embeddings { tensor_name: "paper" tensor_path: "x/t.tsv" }\n' * 2
    (tmp_path / CONFIG).write_text(twice + 'embeddings { tensor_name: "b" }\nmodel_checkpoint_path: "kept"\n')
    write_projector(tmp_path, "paper", cloud(), {})
    config = text_format.Parse((tmp_path / CONFIG).read_text(), ProjectorConfig())
    assert [entry.tensor_name for entry in config.embeddings] == ["paper", "b"]
    assert config.model_checkpoint_path == "kept"


HOSTILE = ["a\tb", "a\nb", "a\r\nb", "", " \t", "<b>&", "\u2028x", "\ud800", "\x00", "素数", "a\x85b", "label"]


@pytest.mark.parametrize("columns", [1, 2])
def test_labels_cannot_shift_rows_or_columns(tmp_path, columns):
    metadata = {"label": HOSTILE, "more\tnames": [""] * len(HOSTILE)}
    write_projector(tmp_path, "paper", cloud(len(HOSTILE)), dict(list(metadata.items())[:columns]))
    text = served(tmp_path, "/metadata", name="paper").text
    labels = [point["label"] for point in shown(text)]
    assert labels == ["a b", "a b", "a b", EMPTY, EMPTY, "<b>&", "x", "?", EMPTY, "素数", "a b", "label"]


def test_without_metadata_there_is_no_file_of_it(tmp_path):
    write_projector(tmp_path, "paper", cloud(), {})
    (entry,) = served(tmp_path, "/info").get_json(force=True)["embeddings"]
    assert "metadataPath" not in entry


@pytest.mark.parametrize("name", ["../../outside", "a/b: c", "x" * 400, "~", "素数", "a:0", 'q"\\'])
def test_any_name_stays_within_the_folder_and_is_served(tmp_path, name):
    folder = tmp_path / "log"
    file = write_projector(folder, name, cloud(), {"label": ["x"] * 24})
    assert file.resolve().is_relative_to(folder.resolve())
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    (title,) = entries(folder)
    assert np.array_equal(tensor(folder, title), cloud().numpy())
    assert len(shown(served(folder, "/metadata", name=title).text)) == 24


@pytest.mark.parametrize(
    ("name", "points", "metadata", "message"),
    [
        ("paper", torch.full((3, 2), torch.nan), {}, "embeddings: expected finite numbers"),
        ("paper", torch.full((3, 2), 1e39, dtype=torch.float64), {}, "exceeds float32"),
        ("paper", cloud(), {"label": ["a"]}, r"metadata\['label'\]: expected 24 values, one a text, got 1"),
        (" ", cloud(), {}, "name: expected a text"),
    ],
)
def test_what_the_projector_cannot_show_is_refused_before_anything_is_written(
    tmp_path, name, points, metadata, message
):
    with pytest.raises(ValueError, match=message):
        write_projector(tmp_path, name, points, metadata)
    assert not list(tmp_path.iterdir())


def test_a_broken_configuration_is_named_and_left(tmp_path):
    (tmp_path / CONFIG).write_text("embeddings {")
    with pytest.raises(ValueError, match=rf"{CONFIG}: expected a projector's configuration"):
        write_projector(tmp_path, "paper", cloud(), {})
    assert json.dumps([path.name for path in tmp_path.iterdir()]) == f'["{CONFIG}"]'
