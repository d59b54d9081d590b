"""Cross-fitting: folds are trained from the right weights, measured on what they did not see, kept, and taken up again."""

import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from sentence_transformers import SentenceTransformer
from sklearn.metrics import davies_bouldin_score, silhouette_score

import lightning_app.run
from data.folds import paper_folds
from data.suites import broad_suite, paper_suite
from evaluation.report_schema import validate_report
from evaluation.suite_report import Effort
from lightning_app import cross_fitting
from lightning_app.config import LoraConfig, StageConfig, TrainConfig
from lightning_app.cross_fitting import FoldEmbeddings, cross_fit, cross_fit_null, cross_fit_report
from lightning_app.measurement import Measures
from lightning_app.preparation import prepare
from lightning_app.run import train
from lightning_app.stages import read_run_data
from models.adapter import adapter_state, load_adapter_weights
from storage.json_file import read_json
from storage.manifest import verify_manifest

SIX = StageConfig(name="six", families=("six",), epochs=1, steps_per_epoch=12, learning_rate=2e-2)
LABELS = paper_suite().labels


def config_of(tiny_folder: Path, output: Path, **settings) -> TrainConfig:
    chosen = {"stages": (SIX,), "lora": LoraConfig(r=4, alpha=8), "cross_fit": 2, "accelerator": "cpu"}
    chosen |= {"baselines": False, "permutations": 20, "draws": 2} | settings
    return TrainConfig(backbone=str(tiny_folder), output=str(output), **chosen)


def prepared(config: TrainConfig) -> SimpleNamespace:
    """A run whose last stage has just ended with other weights than it began with."""
    run = prepare(config, read_run_data(config))
    before = adapter_state(run.embedder)
    after = {name: tensor + 0.01 for name, tensor in before.items()}
    load_adapter_weights(run.embedder, after)
    return SimpleNamespace(run=run, folder=Path(config.output), before=before, after=after)


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory):
    """Two folds of a run, with the row that they give."""
    case = prepared(config_of(tiny_folder, tmp_path_factory.mktemp("cross") / "run"))
    case.row = cross_fit(case.run, case.folder, case.before, chief=True)
    return case


def unseen_and_seen(finished, tiny_folder, fold):
    """Embeddings by plain PEFT of what the fold held out, and of what it was trained on."""
    plain = SentenceTransformer(str(tiny_folder), device="cpu")
    plain[0].model = PeftModel.from_pretrained(plain[0].model, str(finished.folder / "cross-fit" / fold.name))
    embeddings = plain.encode(list(paper_suite().texts), convert_to_numpy=True)
    return [(embeddings[list(part)], [LABELS[i] for i in part]) for part in (fold.held_out, fold.trained_on)]


def test_the_row_is_the_mean_over_the_folds_of_what_each_did_not_see(finished, tiny_folder):
    parts = [unseen_and_seen(finished, tiny_folder, fold) for fold in paper_folds(2)]
    unseen = [silhouette_score(*held_out) for held_out, _ in parts]
    assert finished.row["silhouette_true"] == pytest.approx(sum(unseen) / 2, abs=1e-5)
    dispersion = [davies_bouldin_score(*held_out) for held_out, _ in parts]
    assert finished.row["davies_bouldin_true"] == pytest.approx(sum(dispersion) / 2, abs=1e-4)
    seen = sum(silhouette_score(*trained_on) for _, trained_on in parts) / 2
    assert finished.row["note"] == f"unseen windows; on the windows it was trained on: {seen:.3f} (means of 2 folds)"
    assert unseen[0] != pytest.approx(unseen[1], abs=1e-6), "two folds are two models"


def test_windows_that_were_trained_on_score_higher_than_unseen_ones(finished):
    """The point of it: what a table over the same texts would have printed."""
    seen = float(finished.row["note"].split(": ")[1].split()[0])
    assert seen > finished.row["silhouette_true"] + 0.1


def test_the_row_follows_the_schema(finished):
    validate_report({"rows": [finished.row], "context": {}})
    assert (finished.row["name"], finished.row["family"]) == ("1-six-cross-fit", "lora")
    assert (finished.row["suites"], finished.row["retention"]) == ({}, None)
    assert finished.row["retention_reason"] == "made of several models, one a fold"
    assert 0 < finished.row["null"]["p"] <= 1


def test_the_embedder_has_the_stages_weights_again(finished):
    assert all(
        torch.equal(tensor, finished.after[name]) for name, tensor in adapter_state(finished.run.embedder).items()
    )


def test_every_fold_leaves_an_adapter_folder_without_the_selection_suite(finished):
    folders = sorted((finished.folder / "cross-fit").iterdir())
    assert [folder.name for folder in folders] == ["1-3", "2-4"]
    for folder in folders:
        verify_manifest(folder)
        assert {"adapter_model.safetensors", "adapter_config.json", "metrics.json"} <= {
            p.name for p in folder.iterdir()
        }
        assert not any("selection/" in key for epoch in read_json(folder / "metrics.json")["epochs"] for key in epoch)


def test_a_fold_starts_from_the_weights_before_the_last_stage_and_reads_its_own_texts_only(finished, monkeypatch):
    calls = []

    def recorded(run, stage, target, **_):
        state = adapter_state(run.embedder)
        calls.append((stage, target.name, all(torch.equal(state[name], finished.before[name]) for name in state)))

    monkeypatch.setattr(cross_fitting, "fit_stage", recorded)
    cross_fit(finished.run, finished.folder / "elsewhere", finished.before, chief=False)
    assert [(name, fresh) for _, name, fresh in calls] == [("1-3", True), ("2-4", True)]
    for (stage, _, _), fold in zip(calls, paper_folds(2), strict=True):
        assert (stage.stage, stage.classes, stage.per_class) == (SIX, 6, 2)
        assert list(stage.data.texts) == [paper_suite().texts[i] for i in fold.trained_on]


def test_finished_folds_are_not_trained_again(finished, monkeypatch):
    def refusing(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(cross_fitting, "fit_stage", refusing)
    assert cross_fit(finished.run, finished.folder, finished.before, chief=True) == finished.row


def test_ranks_other_than_the_first_train_and_do_not_measure(finished, monkeypatch):
    monkeypatch.setattr(cross_fitting, "cross_fit_report", None)
    assert cross_fit(finished.run, finished.folder, finished.before, chief=False) is None


def test_a_run_has_the_row_after_its_last_stage_and_writes_it_into_the_report(tiny_folder, tmp_path, monkeypatch):
    def few(run):
        effort = Effort(permutations=9, draws=0, kmeans_seeds=0)
        return Measures(paper=paper_suite(), broad=broad_suite(), reported={}, effort=effort)

    monkeypatch.setattr(lightning_app.run, "_measures", few)
    quick = StageConfig(name="six", families=("six",), epochs=1, steps_per_epoch=2, learning_rate=1e-2)
    config = config_of(tiny_folder, tmp_path / "run", stages=(quick,), merges=("linear",), baselines=False)
    rows = train(config)["rows"]
    assert [row["name"] for row in rows] == ["base", "1-six", "1-six-cross-fit", "linear"]
    report = read_json(tmp_path / "run" / "report.json")
    validate_report(report)
    assert report["rows"] == rows
    assert "unseen windows; on the windows it was trained on" in (tmp_path / "run" / "report.html").read_text()
    assert not (tmp_path / "run" / "projections" / "1-six-cross-fit.png").exists(), "of several models, no one picture"
    assert not (tmp_path / "run" / "stages" / "cross-fit-1-3").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cross_fit": 4}, "--cross-fit: expected 2 or 6 folds, got 4; .* since one alone has no silhouette"),
        ({"cross_fit": -1}, "--cross-fit: expected 2 or 6 folds, got -1"),
        ({"cross_fit": 2, "stages": (StageConfig(name="a", families=("broad",)),)}, "without consecutive, even, odd"),
        (
            {"cross_fit": 2, "stages": (SIX, StageConfig(name="b", families=("even", "odd")))},
            "--cross-fit 2: expected the paper's six families in the last stage, .* got b without consecutive, primes",
        ),
        ({"cross_fit": 6, "devices": 8}, "--cross-fit 6 --devices 8: expected a divisor of a fold's 12 texts"),
    ],
)
def test_what_cannot_be_cross_fitted_is_refused(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        read_run_data(TrainConfig(**settings))
    assert "\n" not in str(error.value)


def test_ones_own_text_has_no_cross_fitting(tmp_path):
    file = tmp_path / "t.jsonl"
    rows = [{"text": f"{word} {i}", "label": word} for word in ("red", "green") for i in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        ValueError, match=r"--cross-fit 2: expected a run on the sequence families, .*got --data .*t\.jsonl"
    ):
        read_run_data(TrainConfig(data=str(file), cross_fit=2))


def folds_of(embeddings: torch.Tensor, folds: int) -> list[FoldEmbeddings]:
    return [FoldEmbeddings(fold=fold, embeddings=embeddings) for fold in paper_folds(folds)]


@pytest.mark.parametrize("folds", [2, 6])
def test_a_shuffle_keeps_two_texts_of_each_label_in_every_fold(folds):
    held_out = [fold.held_out for fold in paper_folds(folds)]
    shuffles = cross_fitting._shuffles(torch.tensor(LABELS), held_out, 50, 0)
    assert len({tuple(row.tolist()) for row in shuffles}) == 50
    for row in shuffles:
        assert all(Counter(row[list(fold)].tolist()) == dict.fromkeys(range(6), 2) for fold in held_out)


@pytest.mark.parametrize("folds", [2, 6])
def test_the_null_is_that_of_whole_relabellings_scored_one_by_one(folds):
    found = folds_of(torch.randn(24, 5, generator=torch.Generator().manual_seed(1)), folds)
    codes = torch.tensor(LABELS)
    null = cross_fit_null(found, codes, permutations=60, seed=3)

    def mean_score(labels):
        scores = [
            silhouette_score(one.embeddings[list(one.fold.held_out)].double().numpy(), labels[list(one.fold.held_out)])
            for one in found
        ]
        return sum(scores) / len(scores)

    scores = [mean_score(row) for row in cross_fitting._shuffles(codes, [one.fold.held_out for one in found], 60, 3)]
    mean = sum(scores) / 60
    sd = math.sqrt(sum((score - mean) ** 2 for score in scores) / 59)
    observed = mean_score(codes)
    expected = {"mean": mean, "sd": sd, "z": (observed - mean) / sd}
    expected["p"] = (1 + sum(score >= observed for score in scores)) / 61
    assert null == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("folds", [2, 6])
def test_p_is_uniform_when_the_embeddings_know_nothing(folds):
    """Of six folds too, which share their texts."""
    codes = torch.tensor(LABELS)
    generator = torch.Generator().manual_seed(0)
    found = [folds_of(torch.randn(24, 4, generator=generator), folds) for _ in range(120)]
    p = [cross_fit_null(one, codes, permutations=59, seed=i)["p"] for i, one in enumerate(found)]
    assert 0.42 < sum(p) / 120 < 0.58  # the mean of 120 uniform numbers has sd 0.026
    assert sum(value <= 0.1 for value in p) / 120 < 0.18


def test_what_is_undefined_in_one_fold_is_none_with_the_folds_reason():
    one, two = folds_of(torch.randn(24, 4, generator=torch.Generator().manual_seed(0)), 2)
    report = cross_fit_report([one, FoldEmbeddings(fold=two.fold, embeddings=torch.ones(24, 4))], LABELS)
    assert report["silhouette_true"] is None
    assert report["silhouette_true_reason"].startswith("fold 2-4: all embeddings coincide")
    assert report["null"]["z"] is None
    assert report["note"].startswith("unseen windows; on the windows it was trained on: undefined")
    assert not any(isinstance(value, float) and math.isnan(value) for value in report.values())


@pytest.mark.slow
def test_two_ranks_train_the_same_folds(finished, tiny_folder, tmp_path):
    case = prepared(config_of(tiny_folder, tmp_path / "run", devices=2, strategy="ddp_fork"))
    row = cross_fit(case.run, case.folder, case.before, chief=True)
    assert row["silhouette_true"] == pytest.approx(finished.row["silhouette_true"], abs=1e-3)
