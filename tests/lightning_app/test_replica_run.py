"""A run with replicas: a folder each from the same start, the best one by the selection suite, and merges over them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from peft import PeftModel
from sentence_transformers import SentenceTransformer

import lightning_app.run
from data.suites import broad_suite, paper_suite, selection_suite
from evaluation.clustering import silhouette_score
from evaluation.report_schema import validate_report
from evaluation.suite_report import Effort
from lightning_app import fitting, merges, preparation, stages
from lightning_app.config import LoraConfig, StageConfig, TrainConfig
from lightning_app.fitting import fit_stage
from lightning_app.measurement import Measures
from lightning_app.preparation import prepare
from lightning_app.run import train
from lightning_app.stages import read_run_data
from models.adapter import adapter_state
from storage.json_file import read_json
from storage.manifest import verify_manifest
from storage.tensor_file import read_tensors
from tests.lightning_app.conftest import part_of

SIX = StageConfig(name="six", families=("six",), epochs=2, steps_per_epoch=2, learning_rate=1e-2, retention_floor=0.05)
SETTINGS: dict[str, Any] = {
    "stages": (StageConfig(name="first", families=("six",), epochs=1, steps_per_epoch=1), SIX),
    "lora": LoraConfig(r=4, alpha=8, dropout=0.1),
    "baselines": False,
    "permutations": 9,
    "draws": 0,
    "accelerator": "cpu",
    "replicas": 3,
    "replica_learning_rates": (1e-2, 3e-2),
    "replica_fraction": 0.5,
    "merges": ("soup", "slerp", "search"),
}
REPLICAS = ("2-six-1", "2-six-2", "2-six-3")
SMALL, BROAD = part_of(selection_suite(), 12), part_of(broad_suite(), 20)


def small(patch: pytest.MonkeyPatch) -> None:
    """Suites and searches thinned out, and no lengths looked at, so that a run takes no time."""

    def measures(run):
        effort = Effort(permutations=9, draws=0, kmeans_seeds=0)
        return Measures(paper=paper_suite(), broad=BROAD, reported={}, effort=effort)

    patch.setattr(lightning_app.run, "broad_suite", lambda: BROAD)
    patch.setattr(lightning_app.run, "ProjectionPlot", lambda *_, **__: Callback())
    patch.setattr(lightning_app.run, "_measures", measures)
    patch.setattr(lightning_app.run, "write_all", lambda *_, **__: None)
    patch.setattr(merges, "EVALUATIONS", 6)
    patch.setattr(stages, "selection_suite", lambda: SMALL)
    patch.setattr(preparation, "check_lengths", lambda *_, **__: None)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    small(monkeypatch)


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory):
    config = TrainConfig(backbone=str(tiny_folder), output=str(tmp_path_factory.mktemp("replicas") / "run"), **SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        rows = train(config)["rows"]
    return SimpleNamespace(config=config, folder=Path(config.output), rows=rows)


def embedded(finished, tiny_folder, name, texts):
    plain = SentenceTransformer(str(tiny_folder), device="cpu")
    plain[0].model = PeftModel.from_pretrained(plain[0].model, str(finished.folder / "stages" / name))
    return plain.encode(list(texts), convert_to_tensor=True)


def test_every_replica_is_a_stage_of_its_own(finished):
    folders = {folder.name for folder in (finished.folder / "stages").iterdir()}
    assert folders == {"0-base", "1-first", *REPLICAS}
    tensors = [read_tensors(finished.folder / "stages" / name / "adapter_model.safetensors") for name in REPLICAS]
    for name, own in zip(REPLICAS, tensors, strict=True):
        verify_manifest(finished.folder / "stages" / name)
        told = read_json(finished.folder / "stages" / name / "metrics.json")
        assert told["retention_floor_reached"] is True
        assert not any("selection/" in key for epoch in told["epochs"] for key in epoch)
        assert sum(any(not torch.equal(own[key], other[key]) for key in own) for other in tensors) == 2


def test_rows_follow_the_schema_and_say_what_sets_replicas_apart(finished):
    names = [row["name"] for row in finished.rows]
    assert names == ["base", "1-first", *REPLICAS, "soup", "slerp", "search"]
    validate_report({"rows": finished.rows, "context": {}})
    row = finished.rows[names.index("2-six-2")]
    assert (row["family"], row["note"].split(", ")[:2]) == ("lora", ["replica 2 of 3", "learning rate 0.03"])
    assert "texts" not in (finished.rows[1].get("note") or "")


def test_a_replica_is_what_it_would_be_alone(finished, tiny_folder, tmp_path, monkeypatch):
    """The start is that after the first stage, whatever was trained in between."""
    monkeypatch.setattr(preparation, "_preflight", lambda *_: None)
    alone = TrainConfig(**{**finished.config.__dict__, "output": str(tmp_path / "alone")})
    run = prepare(alone, read_run_data(alone))
    fitting.load_stage(run, finished.folder / "stages" / "1-first")
    third = next(stage for stage in run.data.stages if stage.name == "2-six-3")
    fit_stage(run, third, tmp_path / "alone" / "third", folder=tmp_path / "alone", suites={})
    trained = read_tensors(finished.folder / "stages" / "2-six-3" / "adapter_model.safetensors")
    assert trained.keys() == (state := adapter_state(run.embedder)).keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in trained.items())


def test_the_soup_is_the_mean_of_the_replicas_alone(finished, tiny_folder):
    folded = []
    for name in REPLICAS:
        plain = SentenceTransformer(str(tiny_folder), device="cpu")[0].model
        folded.append(
            PeftModel.from_pretrained(plain, str(finished.folder / "stages" / name)).merge_and_unload().state_dict()
        )
    for name, tensor in read_tensors(finished.folder / "merged" / "soup" / "model.safetensors").items():
        torch.testing.assert_close(tensor, sum(each[name] for each in folded) / 3, atol=1e-6, rtol=1e-5)


def test_the_end_of_the_arc_is_the_best_replica_by_the_selection_suite(finished, tiny_folder):
    scores = {
        name: silhouette_score(embedded(finished, tiny_folder, name, SMALL.texts), SMALL.labels) for name in REPLICAS
    }
    best = max(scores, key=scores.__getitem__)
    inputs = read_json(finished.folder / "merged" / "slerp" / "merge.json")["inputs"]
    assert Path(inputs[1]["path"]).name == best
    row = next(row for row in finished.rows if row["name"] == "slerp")
    assert f"{best}, the best replica by the suite selection" in row["note"]


def test_the_search_chooses_and_keeps_by_the_selection_suite_only(finished):
    told = read_json(finished.folder / "merged" / "search" / "merge.json")
    assert told["search"]["separation"] == "silhouette of the selection suite"
    assert told["search"]["retention"] == "debiased CKA with the base on the selection suite"
    assert (told["search"]["floor"], told["search"]["evaluations"]) == (0.05, 6)
    assert [Path(each["path"]).name for each in told["inputs"]][1:] == list(REPLICAS)
    merged = SentenceTransformer(str(finished.folder / "merged" / "search"), device="cpu")
    embeddings = merged.encode(list(SMALL.texts), convert_to_tensor=True)
    found = silhouette_score(embeddings, SMALL.labels)
    assert found == pytest.approx(told["search"]["chosen"]["separation"], abs=1e-4)
    row = finished.rows[-1]
    assert "chosen by the silhouette of the suite selection among 6 candidates" in row["note"]
    assert "with a CKA to the base of 0.05 or more on the same suite" in row["note"]


def test_the_cards_tell_of_their_own_replica_only(finished):
    card = (finished.folder / "stages" / "2-six-2" / "README.md").read_text()
    assert "1-first" in card
    assert "2-six-2" in card
    assert "2-six-1" not in card
    assert all(name in (finished.folder / "merged" / "soup" / "README.md").read_text() for name in REPLICAS)


@pytest.mark.slow
def test_a_run_that_ends_within_a_replica_goes_on_there(finished, tiny_folder, tmp_path, monkeypatch):
    """The first replica is taken from its folder, the second from its state after the first epoch."""
    config = TrainConfig(**{**finished.config.__dict__, "output": str(tmp_path / "run"), "merges": ()})
    began, original = [], fitting.ClusteringMetrics.on_train_epoch_end

    def ends(self, trainer, pl_module):
        if trainer.log_dir.endswith("2-six-2") and trainer.current_epoch == 1:
            raise KeyError("power")
        original(self, trainer, pl_module)

    with monkeypatch.context() as patch:
        patch.setattr(fitting.ClusteringMetrics, "on_train_epoch_end", ends)
        with pytest.raises(KeyError, match="power"):
            train(config)
    assert {folder.name for folder in (tmp_path / "run" / "stages").iterdir()} == {"0-base", "1-first", "2-six-1"}

    def recorded(self, trainer, pl_module):
        began.append((Path(trainer.log_dir).name, trainer.current_epoch))
        original(self, trainer, pl_module)

    monkeypatch.setattr(fitting.ClusteringMetrics, "on_train_epoch_end", recorded)
    rows = train(TrainConfig(**{**config.__dict__, "resume": True}))["rows"]
    assert began == [("2-six-2", 1), ("2-six-3", 0), ("2-six-3", 1)]
    for name in REPLICAS:
        one, other = (
            read_tensors(folder / "stages" / name / "adapter_model.safetensors")
            for folder in (finished.folder, tmp_path / "run")
        )
        assert all(torch.equal(one[key], other[key]) for key in one), name
    assert rows[:5] == finished.rows[:5]
