"""How models are loaded for an evaluation: cut embeddings, devices, precision, revisions."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize

from data.suites import broad_suite, paper_suite
from evaluation.retention import retention_report
from lightning_app import evaluating
from lightning_app.config import EvaluateConfig
from lightning_app.device_map import parse_device_map
from lightning_app.evaluating import evaluate
from models.embedder import encode, load_embedder


def quick(*models: object, **settings: Any) -> EvaluateConfig:
    defaults = {"suite": (), "permutations": 2, "draws": 0, "baselines": False, "published": False}
    return EvaluateConfig(models=tuple(map(str, models)), **defaults | settings)


@pytest.fixture(scope="module")
def raw(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without the Normalize at its end."""
    model = SentenceTransformer(str(tiny_folder), device="cpu", local_files_only=True)
    assert isinstance(model[-1], Normalize)
    folder = tmp_path_factory.mktemp("raw") / "model"
    SentenceTransformer(modules=list(model)[:-1], device="cpu").save(str(folder))
    return folder


@pytest.fixture
def without_pictures(monkeypatch):
    """The report is report.json alone."""

    def write(folder: Path, *arguments: Any, context: Any, **_: Any) -> None:
        (folder / "report.json").write_text(json.dumps({"rows": arguments[1], "context": context}))

    monkeypatch.setattr(evaluating, "write_all", write)


def test_cut_embeddings_are_the_first_components_and_of_unit_length_where_the_whole_ones_are(
    tiny_folder, raw, tmp_path
):
    out = tmp_path / "vectors.safetensors"
    config = quick(
        *(tiny_folder, tmp_path / "small"),
        base=str(raw),
        truncate_dim=20,
        embeddings=str(out),
        output=str(tmp_path / "out"),
    )
    model = SentenceTransformer(str(raw), device="cpu", local_files_only=True)
    from models.export import save_embedder
    from models.tiny_llm import build_tiny_llm

    save_embedder(build_tiny_llm(hidden_size=16, layers=1, heads=2, intermediate_size=16), tmp_path / "small")
    found = evaluate(config)

    tensors = load_file(out)
    whole = {
        suite.name: model.encode(list(suite.texts), show_progress_bar=False) for suite in (paper_suite(), broad_suite())
    }
    for suite, full in whole.items():
        first = np.asarray(full, dtype=np.float64)[:, :20]
        np.testing.assert_allclose(tensors[f"{raw}/{suite}"], first, atol=1e-5)
        unit = first / np.linalg.norm(first, axis=1, keepdims=True)
        np.testing.assert_allclose(tensors[f"{tiny_folder}/{suite}"], unit, atol=1e-5)
    base, cut, failed = found["rows"]
    expected = retention_report(tensors[f"{tiny_folder}/broad"], tensors[f"{raw}/broad"])
    assert cut["retention"] == pytest.approx(expected), "against the base, which is cut too"
    assert base["dimensions"] == cut["dimensions"] == 20
    assert base["note"] == cut["note"] == "embeddings cut to their first 20 components"
    assert "--truncate-dim: expected 1 to 16 components" in failed["error"]
    assert found["failed"] == [str(tmp_path / "small")]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["context"]["truncate_dim"] == 20
    assert json.loads(Path(f"{out}.json").read_text())["truncate_dim"] == 20


def test_the_only_model_being_shorter_than_the_cut_is_an_error(tiny_folder, tmp_path):
    with pytest.raises(ValueError, match="--truncate-dim: expected 1 to 32 components"):
        evaluate(quick(tiny_folder, truncate_dim=33, output=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"truncate_dim": 0}, "--truncate-dim: expected 1 or more components, got 0"),
        ({"device_map": "everywhere"}, "--device-map: expected auto, balanced, balanced_low_0, sequential, or a JSON"),
        ({"device_map": "{"}, "--device-map, line 1: expected JSON"),
        ({"device_map": "{}"}, "--device-map: expected a device for every part of the model, got an empty object"),
        (
            {"device_map": '{"layers": "abacus"}'},
            "expected a GPU's number, cpu, cuda:N or disk for 'layers', got 'abacus'",
        ),
        ({"device_map": '{"layers": true}'}, "expected a GPU's number, cpu, cuda:N or disk for 'layers', got True"),
        pytest.param(
            {"device_map": '{"": "cuda:0"}'},
            "--device-map: expected cpu or disk, as no GPU is here, got 'cuda:0'",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here"),
        ),
        ({"device_map": "auto", "device": "cpu"}, "--device cpu and --device-map auto: expected one of them, got both"),
    ],
)
def test_options_that_cannot_be_are_refused_before_a_model_is_looked_up(tmp_path, monkeypatch, settings, message):
    monkeypatch.setattr(evaluating, "base_folder", lambda *_, **__: pytest.fail("looked up"))
    with pytest.raises(ValueError) as error:
        evaluate(quick("a", output=str(tmp_path / "out"), **settings))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_device_map_is_a_word_or_an_object():
    assert parse_device_map(None) is None
    assert [parse_device_map(word) for word in ("auto", "sequential")] == ["auto", "sequential"]
    assert parse_device_map('{"": "cpu", "layers.1": 0, "norm": "cuda:1"}') == {
        "": "cpu",
        "layers.1": 0,
        "norm": "cuda:1",
    }


@pytest.mark.usefixtures("without_pictures")
def test_a_model_in_two_places_embeds_as_in_one_and_is_not_moved(tiny_folder, tmp_path):
    """The second layer's weights stay in a file and are read when it runs, as those of a model too large for its device."""
    places = {"embed_tokens": "cpu", "layers.0": "cpu", "layers.1": "disk", "norm": "cpu", "rotary_emb": "cpu"}
    texts = ["1, 2, 3", "5, 10"]
    spread = load_embedder(tiny_folder, device_map=places)
    whole = encode(load_embedder(tiny_folder), texts)
    before = {name: parameter.device for name, parameter in spread.named_parameters()}
    assert {str(device) for device in before.values()} == {"cpu", "meta"}
    for _ in range(2):
        assert torch.equal(encode(spread, texts), whole)
        assert {name: parameter.device for name, parameter in spread.named_parameters()} == before

    config = quick(
        tiny_folder, device_map=json.dumps(places), embeddings=str(tmp_path / "x.npy"), output=str(tmp_path / "out")
    )
    evaluate(config)
    expected = encode(load_embedder(tiny_folder), paper_suite().texts)
    assert np.array_equal(np.load(tmp_path / "x.npy"), expected.numpy())


@pytest.mark.usefixtures("without_pictures")
def test_what_is_asked_of_loading_reaches_the_loader_and_the_look_up(tiny_folder, tmp_path, monkeypatch):
    asked: list[dict[str, Any]] = []
    for name in ("load_embedder", "base_folder"):
        real = getattr(evaluating, name)
        monkeypatch.setattr(evaluating, name, lambda *a, real=real, **k: asked.append(k) or real(*a, **k))
    row = evaluate(
        quick(
            tiny_folder,
            dtype="bfloat16",
            pickled_weights=True,
            trust_remote_code=True,
            truncate_dim=8,
            output=str(tmp_path / "out"),
        )
    )["rows"][0]
    found, loaded = asked
    assert (found["pickled_weights"], found["code"]) == (True, True)
    assert (loaded["dtype"], loaded["pickled_weights"], loaded["trust_remote_code"]) == (torch.bfloat16, True, True)
    assert row["dimensions"] == 8
    assert json.loads((tmp_path / "out" / "report.json").read_text())["context"]["dtype"] == "bfloat16"


@pytest.mark.usefixtures("without_pictures")
def test_pickled_weights_are_measured_where_they_are_asked_for(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "pickled")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    settings = {"cache": str(tmp_path / "cache"), "output": str(tmp_path / "out")}
    with pytest.raises(ValueError, match="--pickled-weights"):
        evaluate(quick(folder, **settings))
    out = tmp_path / "x.npy"
    evaluate(quick(folder, pickled_weights=True, embeddings=str(out), **settings))
    assert np.array_equal(np.load(out), encode(load_embedder(tiny_folder), paper_suite().texts).numpy())


@pytest.mark.usefixtures("without_pictures")
def test_a_revision_in_a_name_is_part_of_the_row(tiny_folder, tmp_path, monkeypatch):
    """Two revisions of one model are two rows, looked up and loaded under the whole name."""
    asked: list[str] = []
    real = evaluating.load_embedder
    monkeypatch.setattr(evaluating, "base_folder", lambda name, **_: asked.append(name) or tiny_folder)
    monkeypatch.setattr(
        evaluating, "load_embedder", lambda name, **settings: asked.append(name) or real(tiny_folder, **settings)
    )
    names = ["e5-mistral@main", f"e5-mistral@{'a' * 40}"]
    rows = evaluate(quick(*names, output=str(tmp_path / "out")))["rows"]
    assert [row["name"] for row in rows] == names
    assert asked == names * 2
