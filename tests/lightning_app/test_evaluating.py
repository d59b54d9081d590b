"""The evaluate command: rows, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from evaluation import clustering_report
from lightning_app.config import EvaluateConfig
from lightning_app.evaluating import evaluate
from models.embedder import encode, load_embedder
from models.export import save_adapter
from models.lora import add_lora


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

    config = EvaluateConfig(models=(str(stage),), base=str(tiny_folder), suite=("large",), output=str(tmp_path / "out"))
    rows = evaluate(config)["rows"]
    assert [(row["name"], row["family"]) for row in rows] == [(str(tiny_folder), "base"), (str(stage), "lora")]
    assert rows[0]["retention"]["cka"] == pytest.approx(1)
    assert 0 < rows[1]["retention"]["cka"] < 0.9999
    suite = large_suite()
    expected = clustering_report(encode(load_embedder(stage), suite.texts), suite.labels)
    assert rows[1]["suites"]["large"] == expected
    assert evaluate(replace(config, resume=True))["rows"] == rows, "a finished evaluation is kept"
    with pytest.raises(ValueError, match="--overwrite"):
        evaluate(config)


def test_without_a_base_retention_says_why_it_is_missing(tiny_folder, tmp_path):
    config = EvaluateConfig(models=(str(tiny_folder),), suite=("paper",), output=str(tmp_path / "out"))
    row = evaluate(config)["rows"][0]
    assert row["retention"] is None
    assert row["retention_reason"] == "no base was given"


def test_a_users_own_file_is_a_suite(tiny_folder, tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("text,label\n" + "".join(f'"{w} {i}",{w}\n' for w in ("red", "blue") for i in range(4)))
    config = EvaluateConfig(models=(str(tiny_folder),), suite=(str(file),), output=str(tmp_path / "out"))
    assert evaluate(config)["rows"][0]["suites"].keys() == {"mine"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"suite": ("selection",)}, "--suite selection: this suite chooses"),
        ({"suite": ("huge",)}, "--suite: expected paper, large"),
        ({"suite": ("some/paper.csv",)}, "expected a file name of its own, got 'paper' for a second suite"),
        ({"prompt": "clustering"}, "--prompt: expected one of the model's prompts"),
        ({"models": ("tiny-lm",)}, "tiny-llm"),
    ],
)
def test_mistakes_write_nothing(tiny_folder, tmp_path, change, message):
    config = EvaluateConfig(**{"models": (str(tiny_folder),), "output": str(tmp_path / "out")} | change)
    with pytest.raises(ValueError, match=message):
        evaluate(config)
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_are_refused_by_name(tiny_folder, tmp_path):
    import shutil

    broken = shutil.copytree(tiny_folder, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    name = "layers.1.mlp.up_proj.weight"
    tensors[name][0, 0] = float("nan")
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        evaluate(EvaluateConfig(models=(str(broken),), output=str(tmp_path / "out")))


def test_a_text_longer_than_the_model_reads_is_refused(tiny_folder, tmp_path):
    file = tmp_path / "long.jsonl"
    file.write_text("".join(f'{{"text": "{t * n}", "label": "{t}"}}\n' for t in "ab" for n in (2, 1500)))
    with pytest.raises(ValueError, match="suite long: expected texts of at most 1024 tokens"):
        evaluate(EvaluateConfig(models=(str(tiny_folder),), suite=(str(file),), output=str(tmp_path / "out")))
