"""Pretraining: a function of its command, and the same in one go or in two."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

from lightning_app.pretrain_config import PretrainConfig
from lightning_app.pretraining import pretrain
from storage.json_file import read_json
from storage.tensor_file import read_tensors


@pytest.fixture(scope="module")
def small():
    return PretrainConfig(
        hidden_size=16,
        layers=1,
        intermediate_size=16,
        language_steps=2,
        language_batch=8,
        contrastive_steps=2,
        contrastive_batch=4,
        part=4,
        evaluate_every=1,
        validation_texts=4,
        bf16=False,
        threads=1,
    )


def test_two_commands_give_the_weights_of_one(small, tmp_path):
    kept = pretrain(replace(small, output=str(tmp_path / "one")))
    pretrain(replace(small, contrastive_steps=0, output=str(tmp_path / "language")))
    pretrain(replace(small, language_steps=0, init=str(tmp_path / "language"), output=str(tmp_path / "two")))
    one, two, half = (read_tensors(tmp_path / name / "model.safetensors") for name in ("one", "two", "language"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], half[name]) for name in one)
    rows = [json.loads(line) for line in (tmp_path / "two" / "training_log.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in rows] == [
        (s, i) for s in ("language", "contrastive") for i in (1, 2)
    ]
    record = read_json(tmp_path / "two" / "pretraining.json")
    assert len(record["commands"]) == 2
    assert read_json(tmp_path / "one" / "pretraining.json")["kept"] == kept
    best = max(row["selection_silhouette"] for row in rows if row["stage"] == "contrastive")
    assert record["kept"]["selection_silhouette"] == best
    assert SentenceTransformer(str(tmp_path / "two"), device="cpu").encode(["1, 2"]).shape == (1, 16)


def test_an_output_that_exists_and_a_start_that_is_none_are_refused(small, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="--overwrite"):
        pretrain(replace(small, output=str(tmp_path / "there")))
    with pytest.raises(ValueError, match=r"--init .*found no pretraining\.json"):
        pretrain(replace(small, init=str(tmp_path / "there"), output=str(tmp_path / "new")))


def test_the_shipped_weights_say_how_they_were_made():
    record = read_json("models/pretrained/tiny-llm/pretraining.json")
    assert record["config"]["seed"] == 0
    assert all(command.startswith("python pretrain.py") for command in record["commands"])
    log = Path("models/pretrained/tiny-llm/training_log.jsonl").read_text()
    rows = [json.loads(line) for line in log.splitlines()]
    assert record["kept"]["selection_silhouette"] == max(
        row["selection_silhouette"] for row in rows if row["stage"] == "contrastive"
    )
