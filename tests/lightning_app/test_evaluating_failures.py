"""Broken models beside good ones, and names that would meet in one report: a row, an exit code, one line a failure."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evaluation.report_schema import validate_report
from lightning_app.command_line import main
from lightning_app.config import EvaluateConfig

QUICK = ["--suite", "paper", "--permutations", "20", "--draws", "2", "--no-baselines", "--no-published"]


def command(
    capsys: pytest.CaptureFixture[str], *words: object, settings: Sequence[str] = QUICK
) -> tuple[int, list[str]]:
    """The exit code of ``evaluate.py`` with these words, and its lines on stderr that tell of failures."""
    code = main(
        EvaluateConfig,
        "lightning_app.evaluating:evaluate",
        argv=list(map(str, [*words, *settings])),
        positional="models",
    )
    lines = capsys.readouterr().err.splitlines()
    return code, [line for line in lines if line.startswith(("failed", "error", "Traceback"))]


@pytest.fixture
def changed(tiny_folder, tmp_path):
    """``changed(name, weight, factor)``: a copy of the tiny model in which one weight is multiplied."""

    def make(name: str, weight: str, factor: float) -> Path:
        folder = shutil.copytree(tiny_folder, tmp_path / name)
        tensors = load_file(folder / "model.safetensors")
        tensors[weight] = tensors[weight] * factor
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder

    return make


@pytest.fixture
def unreadable(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "unreadable")
    (folder / "model.safetensors").write_bytes(b"not weights")
    return folder


def report_of(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    validate_report(report)
    return report


def test_each_failure_is_a_row_and_one_line_and_the_others_are_finished(
    capsys, tiny_folder, changed, unreadable, tmp_path
):
    overflowing = changed("overflowing", "norm.weight", 3e38)
    broken = changed("broken", "layers.1.mlp.up_proj.weight", float("nan"))
    out = tmp_path / "out"
    misdescribed = shutil.copytree(tiny_folder, tmp_path / "misdescribed")
    described = json.loads((misdescribed / "config.json").read_text())
    (misdescribed / "config.json").write_text(json.dumps(described | {"rms_norm_eps": None}))
    models = (unreadable, tiny_folder, overflowing, broken, misdescribed)
    code, lines = command(capsys, *models, "--output", out)
    assert code == 1
    assert [line.split(":")[1].strip() for line in lines] == [
        *(str(folder) for folder in (unreadable, overflowing, broken, misdescribed))
    ]
    rows = report_of(out)["rows"]
    assert ["error" in row for row in rows] == [True, False, True, True, True]
    assert "model.safetensors: expected a safetensors file, got 11 bytes" in rows[0]["error"]
    assert "expected files of one model that its config.json describes, got " in rows[4]["error"]
    assert "expected finite numbers, got NaN or infinity" in rows[2]["error"]
    assert "expected finite weights, got NaN" in rows[3]["error"]
    code, again = command(capsys, *models, "--output", out, "--resume")
    assert (code, again) == (1, lines), "a finished evaluation still has failures"


def test_a_collapsed_model_has_reasons_and_no_numbers(capsys, tiny_folder, changed, tmp_path):
    """One token for all texts: what is left is the rounding of the forward pass, which is no geometry."""
    folder = changed("collapsed", "embed_tokens.weight", 0.0)
    tensors = load_file(folder / "model.safetensors")
    tensors["embed_tokens.weight"] += torch.linspace(-1, 1, 32)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    out = tmp_path / "out"
    assert command(capsys, tiny_folder, folder, "--base", tiny_folder, "--output", out) == (0, [])
    row = report_of(out)["rows"][1]
    undefined = [key for key, value in row.items() if value is None and key != "prompt"]
    assert {"silhouette_true", "kmeans_ami", "confusion", "nuisance", "silhouette_by_family"} <= set(undefined)
    assert all(row[f"{key}_reason"] for key in undefined)
    assert row["null_within"]["z"] is None
    assert set(row["retention"].values()) >= {None}
    assert "error" not in row


def test_a_base_that_fails_ends_the_command_and_writes_nothing(capsys, tiny_folder, unreadable, tmp_path):
    code, lines = command(capsys, tiny_folder, "--base", unreadable, "--output", tmp_path / "out")
    assert (code, len(lines)) == (2, 1)
    assert str(unreadable) in lines[0]
    assert not (tmp_path / "out").exists()


def test_an_earlier_report_survives_a_command_that_fails(capsys, tiny_folder, unreadable, tmp_path):
    out = tmp_path / "out"
    command(capsys, tiny_folder, "--output", out)
    before = (out / "report.json").read_text()
    assert command(capsys, unreadable, "--output", out, "--overwrite")[0] == 2
    assert (out / "report.json").read_text() == before
    assert command(capsys, tiny_folder, "--output", out)[0] == 2, "it is not replaced without --overwrite"
    assert command(capsys, tiny_folder, "--output", out, "--overwrite")[0] == 0
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".out")] == []


def test_an_error_of_our_own_is_not_put_down_to_the_model(capsys, tiny_folder, tmp_path, monkeypatch):
    def bug(*arguments: object, **settings: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr("lightning_app.measurement.suite_report", bug)
    with pytest.raises(KeyError, match="ours"):
        command(capsys, tiny_folder, "--output", tmp_path / "out")


def test_one_model_under_several_names_has_a_row_and_files_for_each(capsys, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("0", "a b", "a_b"):
        shutil.copytree(tiny_folder, tmp_path / name)
    assert command(capsys, "./a b", "0", "a b", "a_b", "a_b", "--output", "out") == (0, [])
    names = [row["name"] for row in report_of(tmp_path / "out")["rows"]]
    assert names == ["./a b", "0", "a b", "a_b"]
    for kind in ("projections", "tensorboard", "mteb"):
        assert len(list((tmp_path / "out" / kind).iterdir())) == 4, kind


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["random", "--baselines"], "random: expected a name that no other row of the report has"),
        (["./random", "--output", "file/below"], "--output file/below: expected a place in a folder, got the file"),
        (["./random", "--output", "file"], "--output file: expected a folder or nothing, got a file"),
        (["./random", "--suite", "Paper.csv"], "got 'Paper' for a second suite beside 'paper'"),
        (["./random", "--suite", "x_reason.csv"], "without the ending '_reason'"),
        (["./random", "--suite", "a_b.csv", "a-b.csv"], "got 'a-b' for a second suite beside 'a_b'"),
        (["./random", "--suite", "one.csv"], "one.csv: expected at least 2 labels"),
        (["./random", "--suite", "single.csv"], "single.csv: expected at least 2 texts a label, got 1 for 'b'"),
        (["./random", "--suite", "unlabelled.csv"], "unlabelled.csv:3: expected a non-empty label"),
        (["./random", "--draws", "1"], "--draws: expected 0 (none), or 2 and more, got 1"),
        (["./random", "--seed", "-1"], "--seed: expected 0 to"),
        (["./random", "--batch-size", "0"], "--batch-size: expected 1 or more"),
        (["./random", "--device", "abacus"], "--device: expected auto"),
        (
            ["./random", "--embeddings", "x.pt"],
            "--embeddings x.pt: expected a name that ends with .safetensors or .npy",
        ),
        (["./random", "--truncate-dim", "0"], "--truncate-dim: expected 1 or more components, got 0"),
        (["./random", "--device-map", "auto", "--device", "cpu"], "--device-map auto: expected one of them, got both"),
        (["./random", "--separator", ""], "--separator: expected some text without digits"),
        (["./random", "--separator", "1"], "--separator: expected some text without digits"),
        (["./random", "--mteb", "mteb"], "expected one result, got those of the revisions"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_measured(capsys, tiny_folder, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lightning_app.evaluating.load_embedder", lambda *_, **__: pytest.fail("measured"))
    shutil.copytree(tiny_folder, tmp_path / "random")
    (tmp_path / "file").write_text("here")
    labelled = "text,label\na,a\nb,a\nc,b\nd,b\n"
    for name in ("Paper", "x_reason", "a_b", "a-b"):
        (tmp_path / f"{name}.csv").write_text(labelled)
    (tmp_path / "one.csv").write_text("text,label\na,a\nb,a\n")
    (tmp_path / "single.csv").write_text("text,label\na,a\nb,a\nc,b\n")
    (tmp_path / "unlabelled.csv").write_text("text,label\na,a\nb,\n")
    result = {"task_name": "T", "scores": {"test": [{"main_score": 0.5, "hf_subset": "default", "languages": []}]}}
    for revision in ("a" * 40, "b" * 40):
        (tmp_path / "mteb" / "org__m" / revision).mkdir(parents=True)
        (tmp_path / "mteb" / "org__m" / revision / "T.json").write_text(json.dumps(result))
    before = sorted(tmp_path.iterdir())
    output = [] if "--output" in words else ["--output", "out"]
    code, lines = command(capsys, *words, *output, settings=())
    assert (code, len(lines)) == (2, 1)
    assert message in lines[0]
    assert sorted(tmp_path.iterdir()) == before


def test_mteb_scores_are_in_tensorboard_too(tiny_folder, tmp_path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "mteb" / f"org__{tiny_folder.name}" / "main"
    folder.mkdir(parents=True)
    result = {"task_name": "T", "scores": {"test": [{"main_score": 0.5, "hf_subset": "default", "languages": []}]}}
    (folder / "T.json").write_text(json.dumps(result))
    command(capsys, tiny_folder, "--mteb", tmp_path / "mteb", tmp_path / "mteb", "--output", tmp_path / "out")
    (written,) = (tmp_path / "out" / "tensorboard").iterdir()
    events = EventAccumulator(str(written)).Reload()
    assert events.Scalars("benchmarks/T")[0].value == pytest.approx(0.5)
