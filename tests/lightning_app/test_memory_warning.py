"""Too little memory: said before the model is loaded, and never in the way of a run."""

import json
import re

import pytest

from lightning_app import memory_warning
from lightning_app.config import LoraConfig, StageConfig, TrainConfig
from lightning_app.memory_warning import available_memory, shortage, warn_of_memory
from lightning_app.preparation import prepare
from lightning_app.run_memory import run_memory, run_sizes
from lightning_app.stages import read_run_data
from models.training_memory import training_memory

SHORT = {"stages": (StageConfig(name="six", families=("six",), steps_per_epoch=1),), "accelerator": "cpu"}


@pytest.fixture
def config(tiny_folder):
    return TrainConfig(backbone=str(tiny_folder), **SHORT)


def warned(config, folder, capsys):
    warn_of_memory(config, read_run_data(config), folder=folder, row=None)
    return capsys.readouterr().err


def test_one_line_with_need_available_and_ways_out(config, tiny_folder, capsys, monkeypatch):
    monkeypatch.setattr(memory_warning, "available_memory", lambda config: 100_000)
    said = warned(config, tiny_folder, capsys)
    assert re.fullmatch(
        r"warning: about [0-9.]+ MB of memory needed, 100 kB available; try .*; the run goes on\n", said
    )
    assert "--lora.quantization nf4, --gradient-checkpointing, smaller batches (--stages.0.classes" in said


def test_nothing_is_said_and_no_text_read_where_it_is_enough(config, tiny_folder, capsys, monkeypatch):
    monkeypatch.setattr(memory_warning, "available_memory", lambda config: 10**12)
    monkeypatch.setattr(memory_warning, "plan_tokenizer", None)
    assert warned(config, tiny_folder, capsys) == ""


def test_texts_are_counted_in_tokens_before_a_word_is_said(config, tiny_folder, capsys, monkeypatch):
    sizes, data = run_sizes(config, tiny_folder, None), read_run_data(config)
    batch = data.stages[0].classes * data.stages[0].per_class
    longest = max(len(text) for text in data.stages[0].data.texts)
    bound = run_memory(config, sizes, [(batch, longest + 16)])["peak"]
    monkeypatch.setattr(memory_warning, "available_memory", lambda config: bound - 1)
    assert warned(config, tiny_folder, capsys) == ""


def test_a_model_that_cannot_be_counted_is_left_to_the_loader(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(memory_warning, "available_memory", lambda config: 1)
    told = {"model_type": "own_model", "auto_map": {"AutoConfig": "m.C", "AutoModel": "m.M"}}
    (tmp_path / "config.json").write_text(json.dumps(told))
    assert warned(config, tmp_path, capsys) == ""


def test_a_run_that_is_warned_of_goes_on(config, capsys, monkeypatch):
    monkeypatch.setattr(memory_warning, "available_memory", lambda config: 1)
    assert prepare(config, read_run_data(config)).adapts
    assert capsys.readouterr().err.count("warning: about") == 1


def test_with_a_token_budget_a_part_of_the_batch_is_held(tiny_folder):
    sizes = run_sizes(TrainConfig(), tiny_folder, None)
    for budget, texts in ((None, 48), (640, 10), (650, 11), (10, 1), (10**6, 48)):
        found = run_memory(TrainConfig(token_budget=budget), sizes, [(48, 64)])
        assert found["activations"] == training_memory(sizes, texts=texts, tokens=64)["activations"]
    needed = {"peak": 10**9, "merged": 0}
    assert "--token-budget" in shortage(TrainConfig(), needed, 1)
    assert "--token-budget" not in shortage(TrainConfig(token_budget=64), needed, 1)


def test_the_ways_out_are_those_that_are_left():
    needed = {"peak": 10**10, "merged": 0}
    said = shortage(TrainConfig(devices=2, lora=LoraConfig(quantization="nf4"), gradient_checkpointing=True), needed, 1)
    assert "on each device" in said
    for flag in ("--lora.quantization", "--gradient-checkpointing", "--strategy"):
        assert flag not in said
    assert "--strategy fsdp" in shortage(TrainConfig(devices=2), needed, 1)
    assert "--strategy" not in shortage(TrainConfig(devices=2, strategy="fsdp"), needed, 1)
    assert "--merges without a name" in shortage(TrainConfig(), {"peak": 10**10, "merged": 10**10}, 1)
    assert shortage(TrainConfig(), needed, 10**10) is None


def test_processes_share_the_memory_and_a_container_limits_it(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_warning, "GROUP", tmp_path)
    free = available_memory(TrainConfig(accelerator="cpu"))
    assert free == pytest.approx(4 * available_memory(TrainConfig(accelerator="cpu", devices=4)), rel=0.2)
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(TrainConfig(accelerator="cpu")) > 10**6
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("4000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 2500\n")
    assert available_memory(TrainConfig(accelerator="cpu")) == 3500
