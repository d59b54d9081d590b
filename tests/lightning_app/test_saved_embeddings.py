"""Saved embeddings are those that were measured, with what their rows are; and a place that cannot be used costs nothing."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sklearn.metrics import silhouette_score

from data.suites import broad_suite, paper_suite
from lightning_app import evaluating
from lightning_app.config import EvaluateConfig
from lightning_app.evaluating import evaluate

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = f"some/one@{COMMIT}"


def quick(*models: object, **settings: Any) -> EvaluateConfig:
    defaults = {"suite": (), "permutations": 2, "draws": 0, "baselines": False, "published": False}
    return EvaluateConfig(models=tuple(map(str, models)), **defaults | settings)


@pytest.fixture
def snapshot(tiny_folder: Path, tmp_path: Path) -> Path:
    """A hub cache with a model of other weights."""
    folder = tmp_path / "cache" / "models--some--one" / "snapshots" / COMMIT
    shutil.copytree(tiny_folder, folder)
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs" / "main").write_text(COMMIT)
    tensors = load_file(folder / "model.safetensors")
    tensors["layers.0.mlp.up_proj.weight"] *= 2
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return tmp_path / "cache"


@pytest.fixture
def without_pictures(monkeypatch):
    """The report is report.json alone."""

    def write(folder: Path, *arguments: Any, context: Any, **_: Any) -> None:
        (folder / "report.json").write_text(json.dumps({"rows": arguments[1], "context": context}))

    monkeypatch.setattr(evaluating, "write_all", write)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    file = tmp_path / "mine.csv"
    file.write_text("text,label\n" + "".join(f'"{w}, {i}",{w}\n' for w in ("red", "blue") for i in range(4)))
    return file


def test_every_model_and_suite_is_in_one_file_as_it_was_measured(tiny_folder, snapshot, mine, tmp_path, monkeypatch):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_folder, broken)
    (broken / "model.safetensors").write_bytes(b"not weights")
    encoded: list[int] = []
    encode = evaluating.encode
    monkeypatch.setattr(evaluating, "encode", lambda *a, **k: encoded.append(len(a[1])) or encode(*a, **k))
    out = tmp_path / "new" / "vectors.safetensors"
    config = quick(
        *(NAME, broken),
        base=str(tiny_folder),
        cache=str(snapshot),
        offline=True,
        suite=(str(mine),),
        baselines=True,
        embeddings=str(out),
        output=str(tmp_path / "out"),
    )
    found = evaluate(config)
    assert encoded == [24, len(broad_suite().texts), 8] * 2, "one forward pass a model and suite"
    assert found["embeddings"] == str(out)

    suites = {"paper": paper_suite().texts, "broad": broad_suite().texts}
    suites["mine"] = [f"{word}, {i}" for word in ("red", "blue") for i in range(4)]
    folders = {str(tiny_folder): tiny_folder, NAME: snapshot / "models--some--one" / "snapshots" / COMMIT}
    tensors = load_file(out)
    assert set(tensors) == {f"{name}/{suite}" for name in folders for suite in suites}
    for name, folder in folders.items():
        model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        for suite, texts in suites.items():
            assert tensors[f"{name}/{suite}"].dtype == torch.float32
            expected = model.encode(list(texts), convert_to_tensor=True, show_progress_bar=False)
            torch.testing.assert_close(tensors[f"{name}/{suite}"], expected)

    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    described = json.loads(Path(f"{out}.json").read_text())
    assert metadata["format"] == "pt"
    assert json.loads(metadata["models"]) == described["models"]
    assert described["models"] == {
        str(tiny_folder): {"prompt": None, "dimensions": 32},
        NAME: {"prompt": None, "dimensions": 32, "hub_id": "some/one", "revision": COMMIT},
    }
    assert described["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert list(described["failed"]) == [str(broken)]
    for suite, texts in suites.items():
        part = described["suites"][suite]
        assert part["texts"] == list(texts)
        digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
        assert digest == part["texts_sha256"] == json.loads(metadata["suites"])[suite]["texts_sha256"]
        mteb = [json.loads(path.read_text()) for path in (tmp_path / "out" / "mteb").rglob("*.json")]
        revisions = {each.get("dataset_revision") for each in mteb}
        assert suite == "broad" or digest[:40] in revisions
    own = described["suites"]["mine"]
    assert [own["families"][label] for label in own["labels"]] == ["red"] * 4 + ["blue"] * 4

    row = found["rows"][1]
    labels = described["suites"]["paper"]["labels"]
    assert row["silhouette_true"] == pytest.approx(silhouette_score(tensors[f"{NAME}/paper"], labels), abs=1e-6)


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize(("own", "count"), [(False, 24), (True, 8)])
def test_one_model_and_one_suite_fit_a_npy_file(tiny_folder, mine, tmp_path, own, count):
    out = tmp_path / "vectors.npy"
    suite = (str(mine),) if own else ("paper",)
    evaluate(quick(tiny_folder, suite=suite, embeddings=str(out), output=str(tmp_path / "out")))
    described = json.loads(Path(f"{out}.json").read_text())
    (part,) = described["suites"].values()
    assert list(described["suites"]) == (["mine"] if own else ["paper"])
    assert len(part["labels"]) == count
    matrix = np.load(out, allow_pickle=False)
    model = SentenceTransformer(str(tiny_folder), device="cpu", local_files_only=True)
    np.testing.assert_allclose(matrix, model.encode(part["texts"], show_progress_bar=False), atol=1e-6)
    assert (matrix.dtype, matrix.shape) == (np.float32, (count, 32))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embeddings": "x.pt"}, "--embeddings x.pt: expected a name that ends with .safetensors or .npy, got '.pt'"),
        ({"embeddings": "x"}, "--embeddings x: expected a name that ends with .safetensors or .npy, got 'none'"),
        ({"embeddings": "x.npy", "base": "other"}, "expected one model (MODEL) for a .npy file, got 2 (other, tiny)"),
        ({"embeddings": "x.npy", "suite": ("large", "broad")}, "expected one suite (--suite) for a .npy file, got 2"),
        ({"embeddings": "folder.npy", "overwrite": True}, "folder.npy: expected a file, got a folder"),
        ({"embeddings": "out.npy", "output": "out.npy"}, "out.npy: expected a file, got a folder"),
        ({"embeddings": "o.npy", "output": "o.npy/report"}, "o.npy: expected a file, got a folder"),
        ({"embeddings": "there.npy/x.npy"}, "expected a place in a folder, got the file"),
        ({"embeddings": "there.npy"}, "there.npy: expected a name that is free, got one that exists; choose another"),
        ({"embeddings": "texts.npy"}, "texts.npy.json: expected a name that is free, got one that exists"),
    ],
)
def test_a_place_that_cannot_be_used_is_refused_before_a_model_is_loaded(
    tiny_folder, tmp_path, monkeypatch, settings, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluating, "load_embedder", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr(evaluating, "base_folder", lambda *_, **__: pytest.fail("looked up"))
    (tmp_path / "folder.npy").mkdir()
    for name in ("there.npy", "texts.npy.json"):
        (tmp_path / name).write_text("kept")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"^--embeddings ") as error:
        evaluate(quick("tiny", **{"suite": ("paper",), "output": "out"} | settings))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("place", ["out", "link/out", ""])
def test_a_finished_evaluation_is_kept_with_its_embeddings_or_not_at_all(tiny_folder, tmp_path, place):
    """Inside the report's folder, there by way of a link, and elsewhere."""
    folder = tmp_path / "out"
    (tmp_path / "link").symlink_to(tmp_path)
    out = tmp_path / place / "vectors.npy"
    settings = {"suite": ("paper",), "embeddings": str(out), "output": str(folder)}
    rows = evaluate(quick(tiny_folder, **settings))["rows"]
    first = out.read_bytes()
    assert evaluate(quick(tiny_folder, resume=True, **settings))["rows"] == rows
    out.write_bytes(first[:-1] + b"?")
    with pytest.raises(ValueError, match=r"--resume: expected .*vectors\.npy as vectors\.npy\.json describes it"):
        evaluate(quick(tiny_folder, resume=True, **settings))
    out.unlink()
    with pytest.raises(ValueError, match=r"--resume: expected the embeddings .* found no .*vectors\.npy"):
        evaluate(quick(tiny_folder, resume=True, **settings))
    out.write_bytes(b"older")
    evaluate(quick(tiny_folder, overwrite=True, **settings))
    assert out.read_bytes() == first
    found = {path.name for path in out.parent.iterdir()}
    assert {"vectors.npy", "vectors.npy.json"} <= found
    assert not [name for name in found if name.startswith(".")]


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("fault", ["read_tensors", "read_header", "write_json"])
def test_a_fault_while_saving_leaves_neither_embeddings_nor_a_report(tiny_folder, tmp_path, monkeypatch, fault):
    from storage import tensor_file

    def fails(path: Path, *_: object) -> Any:
        if fault == "read_tensors":
            return {name: tensor + 1 for name, tensor in tensor_file.read_tensors(path).items()}
        if fault == "read_header":
            return tensor_file.Header({})
        raise OSError("no space left on device")

    monkeypatch.setattr(f"lightning_app.saved_embeddings.{fault}", fails)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.safetensors").write_text("older")
    with pytest.raises((ValueError, OSError), match="read back another; check the disk|no space left"):
        evaluate(quick(tiny_folder, embeddings="x.safetensors", output="out", overwrite=True))
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == ["x.safetensors"]
    assert (tmp_path / "x.safetensors").read_text() == "older"
