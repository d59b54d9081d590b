"""The evaluate command: rows, and what it refuses."""

import json
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evaluation import clustering_report
from lightning_app.config import EvaluateConfig
from lightning_app.evaluating import evaluate
from models.embedder import encode, load_embedder
from models.export import save_adapter
from models.lora import add_lora


def quick(**settings: Any) -> EvaluateConfig:
    """Little is spent on chance, and no rows beside the models, unless a test asks for them."""
    defaults = {"suite": ("paper",), "permutations": 20, "draws": 2, "baselines": False, "published": False}
    return EvaluateConfig(**defaults | settings)


@pytest.fixture(scope="module")
def stage(tiny_folder, tmp_path_factory):
    """An adapter folder with an effect."""
    embedder = load_embedder(tiny_folder)
    add_lora(embedder, r=2, alpha=8, targets=["q_proj", "v_proj"])
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in embedder.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    return save_adapter(
        embedder, tmp_path_factory.mktemp("stage") / "1-x", base_name=str(tiny_folder), base_folder=tiny_folder
    )


def test_rows_of_a_base_and_its_adapter(tiny_folder, stage, tmp_path):
    from data.suites import large_suite

    config = quick(models=(str(stage),), base=str(tiny_folder), suite=("large",), output=str(tmp_path / "out"))
    rows = evaluate(config)["rows"]
    assert [(row["name"], row["family"]) for row in rows] == [(str(tiny_folder), "base"), (str(stage), "lora")]
    assert rows[0]["retention"]["cka"] == pytest.approx(1)
    assert 0 < rows[1]["retention"]["cka"] < 0.9999
    suite = large_suite()
    expected = clustering_report(encode(load_embedder(stage), suite.texts), suite.labels, permutations=20)
    assert {key: rows[1]["suites"]["large"][key] for key in expected} == expected
    assert evaluate(replace(config, resume=True))["rows"] == rows, "a finished evaluation is kept"
    with pytest.raises(ValueError, match="--overwrite"):
        evaluate(config)


def test_without_a_base_retention_says_why_it_is_missing(tiny_folder, tmp_path):
    config = quick(models=(str(tiny_folder),), suite=("paper",), output=str(tmp_path / "out"))
    row = evaluate(config)["rows"][0]
    assert row["retention"] is None
    assert row["retention_reason"] == "no base was given"


def test_a_users_own_file_is_a_suite(tiny_folder, tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("text,label\n" + "".join(f'"{w} {i}",{w}\n' for w in ("red", "blue") for i in range(4)))
    config = quick(models=(str(tiny_folder),), suite=(str(file),), output=str(tmp_path / "out"))
    assert evaluate(config)["rows"][0]["suites"].keys() == {"mine"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"suite": ("selection",)}, "--suite selection: this suite chooses"),
        ({"suite": ("huge",)}, "--suite: expected paper, large"),
        ({"suite": ("some/paper.csv",)}, "expected a file name of its own, got 'paper' for a second suite"),
        ({"prompt": "clustering"}, "--prompt: expected one of the model's prompts"),
        ({"models": ("tiny-lm",)}, "tiny-llm"),
        ({"lengths": (5,)}, "--lengths: expected 10 to 400"),
        ({"separator": "7"}, "--separator"),
        ({"permutations": 1}, "--permutations: expected 2 or more"),
        ({"draws": -1}, r"--draws: expected 0 \(none\)"),
        ({"mteb": ("nowhere",)}, "nowhere"),
    ],
)
def test_mistakes_write_nothing(tiny_folder, tmp_path, change, message):
    config = quick(**{"models": (str(tiny_folder),), "output": str(tmp_path / "out")} | change)
    with pytest.raises(ValueError, match=message):
        evaluate(config)
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_are_refused_by_name(tiny_folder, tmp_path):
    broken = shutil.copytree(tiny_folder, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    name = "layers.1.mlp.up_proj.weight"
    tensors[name][0, 0] = float("nan")
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        evaluate(quick(models=(str(broken),), output=str(tmp_path / "out")))


def test_a_text_longer_than_the_model_reads_is_refused(tiny_folder, tmp_path):
    file = tmp_path / "long.jsonl"
    file.write_text("".join(f'{{"text": "{t * n}", "label": "{t}"}}\n' for t in "ab" for n in (2, 1500)))
    with pytest.raises(ValueError, match="suite long: expected texts of at most 1024 tokens"):
        evaluate(quick(models=(str(tiny_folder),), suite=(str(file),), output=str(tmp_path / "out")))


def test_reference_rows_stand_beside_the_models(tiny_folder, tmp_path):
    config = quick(models=(str(tiny_folder),), baselines=True, published=True, suite=(), output=str(tmp_path / "out"))
    rows = evaluate(config)["rows"]
    found = {family: sum(row["family"] == family for row in rows) for family in ("encoder", "baseline", "published")}
    assert found == {"encoder": 1, "baseline": 6, "published": 14}
    assert {row["source"] for row in rows if row["family"] == "published"} == {"published"}
    by_name = {row["name"]: row for row in rows}
    assert by_name["last-digit"]["silhouette_true"] == pytest.approx(0.645, abs=5e-4), "the figure of the design notes"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["rows"] == rows


def test_every_number_of_a_row_has_its_place(tiny_folder, tmp_path):
    row = evaluate(quick(models=(str(tiny_folder),), suite=("large",), output=str(tmp_path / "out")))["rows"][0]
    assert row["dimensions"] == 32
    assert row["interval"]["replicates"] == 9
    assert row["interval"]["low"] < row["silhouette_true"] < row["interval"]["high"]
    assert row["suites"]["large"]["interval"]["low"] < row["suites"]["large"]["silhouette_true"]
    assert {"magnitude", "window", "length", "parity", "tokens"} <= {entry["name"] for entry in row["nuisance"]}
    assert sum(map(sum, row["confusion"]["matrix"])) == 24
    assert row["kmeans_spread"]["seeds"] == 20
    assert row["null_kmeans"]["draws"] == 2
    assert set(row["geometry"]) >= {"anisotropy", "effective_rank", "uniformity", "alignment"}


def test_a_model_that_fails_has_a_row_that_says_why_and_the_others_are_finished(tiny_folder, tmp_path):
    broken = shutil.copytree(tiny_folder, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"not weights")
    found = evaluate(quick(models=(str(broken), str(tiny_folder)), output=str(tmp_path / "out")))
    assert found["failed"] == [str(broken)]
    first, second = found["rows"]
    assert first["error"]
    assert first["silhouette_true"] is None
    assert first["silhouette_true_reason"] == first["error"]
    assert second["silhouette_true"] is not None
    assert str(broken) in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("settings", [{}, {"base": "BROKEN", "models": ("TINY",)}])
def test_nothing_is_written_if_no_model_or_no_base_can_be_measured(tiny_folder, tmp_path, settings):
    broken = shutil.copytree(tiny_folder, tmp_path / "broken")
    (broken / "config.json").write_text('{"model_type": "no-such-model"}')
    names = {"BROKEN": str(broken), "TINY": str(tiny_folder)}
    named: dict[str, Any] = {"models": (str(broken),)} | settings
    named = {
        key: names[value] if isinstance(value, str) else tuple(names.get(v, v) for v in value)
        for key, value in named.items()
    }
    with pytest.raises(ValueError, match="broken"):
        evaluate(quick(**named, output=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_the_effect_of_length_has_a_point_a_length_and_a_reason_where_a_text_is_too_long(tiny_folder, tmp_path):
    config = quick(models=(str(tiny_folder),), lengths=(20, 10, 400), output=str(tmp_path / "out"))
    points = evaluate(config)["rows"][0]["lengths"]
    assert [point["terms"] for point in points] == [10, 20, 400]
    assert all(-1 <= point["silhouette_true"] <= 1 and "z" in point["null"] for point in points[:2])
    assert points[2]["silhouette_true"] is None
    assert "1024 tokens" in points[2]["silhouette_true_reason"]


def test_another_separator_is_another_text(tiny_folder, tmp_path):
    rows = [
        evaluate(quick(models=(str(tiny_folder),), separator=separator, output=str(tmp_path / str(i))))["rows"][0]
        for i, separator in enumerate((None, ", ", " "))
    ]
    assert rows[0]["silhouette_true"] == rows[1]["silhouette_true"]
    assert rows[0]["silhouette_true"] != rows[2]["silhouette_true"]


def test_mteb_scores_join_the_row_of_their_model_and_others_have_their_own(tiny_folder, tmp_path):
    for model in ("somebody__" + tiny_folder.name, "somebody__other"):
        folder = tmp_path / "mteb" / model / "main"
        folder.mkdir(parents=True)
        score = {"main_score": 0.5, "hf_subset": "default", "languages": ["eng-Latn"]}
        (folder / "Banking77Classification.json").write_text(
            json.dumps(
                {
                    "task_name": "Banking77Classification",
                    "dataset_revision": "x",
                    "mteb_version": "2",
                    "evaluation_time": 1.0,
                    "scores": {"test": [score]},
                }
            )
        )
    config = quick(models=(str(tiny_folder),), mteb=(str(tmp_path / "mteb"),), output=str(tmp_path / "out"))
    rows = evaluate(config)["rows"]
    assert [row.get("benchmarks") for row in rows] == [{"Banking77Classification": 0.5}] * 2
    assert rows[1]["source"] == "published"
    assert rows[1]["silhouette_true"] is None


def test_our_numbers_are_written_in_mtebs_shape_and_read_back(tiny_folder, tmp_path):
    from evaluation.mteb import read_mteb

    row = evaluate(quick(models=(str(tiny_folder),), suite=("large",), output=str(tmp_path / "out")))["rows"][0]
    found = {result.task: result.main_score for result in read_mteb(tmp_path / "out" / "mteb")}
    assert sorted(found.values()) == sorted([row["silhouette_true"], row["suites"]["large"]["silhouette_true"]])
