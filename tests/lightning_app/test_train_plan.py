"""The plan of a run against the files, batches and models that a run makes."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import AutoTokenizer

from callbacks.resume_state import ResumeState
from callbacks.stage_checkpoint import StageCheckpoint
from data.sampler import LabelBatchSampler
from lightning_app.command_line import main
from lightning_app.config import LoraConfig, StageConfig, TrainConfig
from lightning_app.merges import Ingredients, merge_run
from lightning_app.module import ContrastiveEmbedder
from lightning_app.stages import read_run_data
from lightning_app.train_plan import plan_run
from models.embedder import load_embedder
from models.export import save_adapter, save_embedder
from models.locate import UnreachableModel
from models.lora import add_lora
from models.tiny_llm import build_tiny_llm
from storage.manifest import weight_files
from storage.tensor_file import read_header
from tests.models.storages import storage_bytes

STAGES = (StageConfig(name="one", epochs=2, steps_per_epoch=3), StageConfig(name="two", epochs=1, steps_per_epoch=4))


@pytest.fixture(scope="module")
def own_text(tmp_path_factory):
    """Text of 4 labels, of many lengths."""
    rows = [
        {"text": ", ".join(str(k * 1000 + 7 * i + j) for j in range(3 + (5 * i) % 11)), "label": f"label {k}"}
        for k in range(4)
        for i in range(30)
    ]
    file = tmp_path_factory.mktemp("text") / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture
def config(tiny_folder, own_text, tmp_path):
    """A function: the configuration of a small run, with changes."""

    def make(**changes):
        given = {"backbone": str(tiny_folder), "data": own_text, "stages": STAGES, "lora": LoraConfig(r=4, alpha=8)}
        return TrainConfig(**{**given, "output": str(tmp_path / "run"), "plan": True, **changes})

    return make


def test_parameters_and_files_are_those_of_the_model(config, tiny_folder, tmp_path):
    plan = plan_run(config())
    embedder = load_embedder(tiny_folder)
    whole = sum(each.numel() for each in embedder.parameters())
    add_lora(embedder, r=4, alpha=8)
    trained = sum(each.numel() for each in embedder.parameters() if each.requires_grad)
    assert (plan["parameters"], plan["trainable"]) == (whole, trained)
    assert plan["trainable_share"] == pytest.approx(trained / (whole + trained))

    with torch.no_grad():
        for each in embedder.parameters():
            each.add_(0.01 if each.requires_grad else 0)
    stages = [
        save_adapter(embedder, tmp_path / name, base_name="tiny", base_folder=tiny_folder) for name in ("one", "two")
    ]
    written = sum((stage / "adapter_model.safetensors").stat().st_size for stage in stages)
    assert plan["disk"]["stages"] == pytest.approx(written, rel=0.05)
    assert set(plan["disk"]["merges"]) == {"soup", "karcher", "slerp", "linear"}
    merge_run("soup", Ingredients(base=tiny_folder, stages=stages, last=stages[-1]), tmp_path / "soup")
    merged = sum(
        path.stat().st_size
        for path in (tmp_path / "soup").rglob("*")
        if path.is_file() and path.name not in ("merge.json", "manifest.json", "README.md")
    )
    assert plan["disk"]["merges"]["soup"] == pytest.approx(merged, rel=0.05)
    assert plan["disk"]["total"] == sum(
        (plan["disk"]["stages"], plan["disk"]["resume"], *plan["disk"]["merges"].values())
    )


class SavedAtTheEnd(ResumeState):
    """Saves as a run does, in Lightning's own loops."""

    def on_train_epoch_end(self, trainer, pl_module):
        self.save(trainer)


def test_the_state_for_a_resume_is_four_times_the_trained_weights(config, fit, tmp_path):
    plan = plan_run(config(stages=STAGES[:1], lora=LoraConfig(r=4, alpha=8, targets=("q_proj", "v_proj", "down_proj"))))
    fit(callbacks=[StageCheckpoint(lambda metrics: None, monitor=None), SavedAtTheEnd(tmp_path / "state")])
    (file,) = weight_files(tmp_path / "state").values()
    written = sum(entry.bytes for entry in read_header(file).entries.values())
    assert plan["disk"]["resume"] == pytest.approx(written, rel=0.01)


def test_a_model_from_scratch_is_written_whole(config, tmp_path):
    plan = plan_run(config(backbone="tiny-encoder", stages=STAGES[:1]))
    assert plan["trainable_share"] == 1
    assert plan["adapted"] == 0
    folder = save_embedder(load_embedder("tiny-encoder"), tmp_path / "encoder")
    written = (folder / "model.safetensors").stat().st_size
    assert plan["disk"]["base"] == pytest.approx(written, rel=0.01)
    assert plan["disk"]["stages"] == pytest.approx(written, rel=0.01)
    assert set(plan["disk"]["merges"]) == {"slerp", "linear"}  # the others need two stages


@pytest.mark.parametrize("batching", ["padded", "sorted"])
@pytest.mark.parametrize("devices", [1, 2])
def test_tokens_are_those_of_the_batches_of_the_model(config, make_mistral, tmp_path, devices, batching):
    folder = make_mistral(tmp_path / "mistral", max_tokens=512)
    settings = json.loads((folder / "config_sentence_transformers.json").read_text())
    prompts = {"prompts": {**settings["prompts"], "query": "Query: "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings | prompts))
    asked = config(backbone=str(folder), devices=devices, stages=STAGES[1:], batching=batching)
    plan = plan_run(asked)
    embedder, stage = load_embedder(folder), read_run_data(asked).stages[0]
    module = ContrastiveEmbedder(embedder, prompt="Query: ")
    used = size = 0
    for rank in range(devices):
        sampler = LabelBatchSampler(
            stage.data.labels,
            classes=stage.classes,
            per_class=stage.per_class,
            batches=4,
            seed=0,
            blocks=stage.data.blocks,
            rank=rank,
            world_size=devices,
        )
        for batch in sampler:
            texts = [stage.data.texts[i] for i in batch]
            parts = [embedder.preprocess(texts, prompt="Query: ")]
            if batching == "sorted":
                parts = module.collate([(text, 0) for text in texts]).parts
            for part in parts:
                mask = part["attention_mask"]
                used, size = used + int(mask.sum()), size + mask.numel()
    (planned,) = plan["stages"]
    assert planned["tokens"] == plan["tokens"] == used
    assert planned["padding_share"] == pytest.approx(1 - used / size)
    assert planned["steps"] == 4


def test_the_folds_of_a_cross_fit_are_fits_too(config):
    stages = (StageConfig(name="six", families=("six",), epochs=1, steps_per_epoch=2),)
    plan = plan_run(config(data=None, stages=stages, cross_fit=2))
    assert len(plan["stages"]) == 3
    assert plan["steps"] == 6
    assert plan["disk"]["resume"] == 3 * 4 * 4 * plan["trainable"]
    assert set(plan["disk"]["merges"]) == {"slerp", "linear"}  # a fold's model is merged with none


def test_the_command_prints_and_writes_nothing(config, tiny_folder, own_text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["--backbone", str(tiny_folder), "--data", own_text, "--plan", "--output", "run"]
    assert main(TrainConfig, "lightning_app.training:train", argv=argv) == 0
    said = capsys.readouterr().out
    assert said.endswith("\nNothing was started, nothing was written.\n")
    for begin in ("model ", "train ", "stage ", "steps ", "memory ", "peak ", "disk ", "note "):
        assert any(line.startswith(begin) for line in said.splitlines()), begin
    assert main(TrainConfig, "lightning_app.training:train", argv=[*argv, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    plan = json.loads(line)
    assert f"{plan['parameters']:,} parameters in float32" in said
    assert f"{plan['tokens']:,} tokens" in said
    assert list(tmp_path.iterdir()) == []


def test_a_backbone_that_is_not_here_is_planned_by_its_shape(config, tmp_path, capsys):
    plan = plan_run(config(backbone="e5-mistral", cache=str(tmp_path / "cache"), lora=LoraConfig(r=16)))
    assert plan["rough"]
    assert (plan["parameters"], plan["dtype"], plan["folder"]) == (7_110_660_096, "float16", None)
    # r x (inputs + outputs) of q, k, v, o, gate, up and down, in each of 32 layers
    sizes = [(4096, 4096), (4096, 1024), (4096, 1024), (4096, 4096), (4096, 14336), (4096, 14336), (14336, 4096)]
    assert plan["trainable"] == 32 * 16 * sum(map(sum, sizes))
    assert plan["memory"]["weights"] >= plan["disk"]["merges"]["soup"] >= 2 * plan["parameters"]
    assert plan["steps"] == 10
    assert plan["disk"]["total"] > 4 * plan["disk"]["merges"]["soup"]
    said = capsys.readouterr().out
    assert f"at most {plan['tokens']:,} tokens" in said
    assert "note     rough: the model is not on this machine" in said
    with pytest.raises(UnreachableModel, match="--plan: expected a model on this machine .* got some/model"):
        plan_run(config(backbone="some/model", cache=str(tmp_path / "cache")))


def test_tokens_of_a_rough_plan_are_a_bound(config, tmp_path):
    exact = plan_run(config(backbone="tiny-llm"))
    rough = plan_run(config(backbone="e5-mistral", cache=str(tmp_path / "cache")))
    assert exact["tokens"] < rough["tokens"] < 2 * exact["tokens"]


def test_the_merge_that_a_run_adds_is_counted(config, make_mistral, tmp_path):
    folder = str(make_mistral(tmp_path / "base", max_tokens=1024))
    assert "last" not in plan_run(config(backbone=folder))["disk"]["merges"]
    assert "last" in plan_run(config(backbone=folder, bidirectional=True))["disk"]["merges"]


def test_what_a_run_would_refuse_is_said(config, tiny_folder, tmp_path):
    with pytest.raises(ValueError, match=r"--stages.0.classes"):
        plan_run(config(stages=(StageConfig(name="one", classes=9),)))
    short = shutil.copytree(tiny_folder, tmp_path / "short")
    tokenizer = AutoTokenizer.from_pretrained(short)
    tokenizer.model_max_length = 16
    tokenizer.save_pretrained(short)
    assert any("the model reads 16" in note for note in plan_run(config(backbone=str(short)))["notes"])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (short / name).unlink()
    plan = plan_run(config(backbone=str(short)))
    assert plan["tokens"] is None
    assert plan["memory"]["peak"] is None
    assert plan["memory"]["optimizer"] > 0
    assert any(note.startswith("no tokenizer in the folder") for note in plan["notes"])


def test_a_plan_needs_no_lightning(tiny_folder, own_text):
    program = (
        "import sys; from lightning_app.config import TrainConfig; from lightning_app.training import train; "
        f"train(TrainConfig(backbone={str(tiny_folder)!r}, data={own_text!r}, plan=True)); "
        "print('lightning' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.endswith("Nothing was started, nothing was written.\nFalse\n")


def test_a_base_in_few_bits_and_the_merge_that_is_not(config, tmp_path, capsys):
    built = build_tiny_llm(hidden_size=64, layers=2, heads=2, intermediate_size=128, seed=1)
    folder = str(save_embedder(built, tmp_path / "wide"))
    asked = {"backbone": folder, "lora": LoraConfig(r=2, quantization="nf4"), "accelerator": "cpu"}
    plan = plan_run(config(**asked))
    memory = plan["memory"]
    assert memory["weights"] == storage_bytes(load_embedder(folder, quantization="nf4"))
    assert memory["merged"] == storage_bytes(load_embedder(folder)) + memory["weights"] + memory["adapter"]
    assert plan_run(config(**asked, merges=()))["memory"]["merged"] == 0
    said = capsys.readouterr().out
    assert "memory   32-true, the frozen base in nf4 on one device: weights" in said
    assert "note     merges take the base as it is stored, and are measured so" in said


def test_dtype_dora_checkpointing_and_fsdp_are_planned(config):
    plain = plan_run(config(accelerator="cpu"))
    half = plan_run(config(accelerator="cpu", dtype="bfloat16", gradient_checkpointing=True))
    assert half["dtype"] == "bfloat16"
    assert half["memory"]["weights"] < 0.51 * plain["memory"]["weights"]
    assert half["memory"]["activations"] < plain["memory"]["activations"]
    assert half["disk"] == plain["disk"]
    dora = plan_run(config(lora=LoraConfig(r=4, alpha=8, use_dora=True)))
    embedder = load_embedder(dora["folder"])
    add_lora(embedder, r=4, alpha=8, use_dora=True)
    assert dora["trainable"] == sum(each.numel() for each in embedder.parameters() if each.requires_grad)
    assert plan_run(config(lora=LoraConfig(r=4, alpha=8, use_rslora=True)))["trainable"] == plain["trainable"]
    spread, whole = (plan_run(config(devices=2, strategy=strategy)) for strategy in ("fsdp", "ddp"))
    assert 2 * spread["memory"]["weights"] == whole["memory"]["weights"] == plain["memory"]["weights"]
    assert "every device holds the whole model" in whole["notes"]
    assert any(note.startswith("every device holds its share") for note in spread["notes"])


@pytest.mark.parametrize(("kind", "bytes_each"), [("nf4", 1 / 2 + 1 / 64), ("int8", 1.0)])
def test_a_rough_plan_knows_few_bits(config, tmp_path, kind, bytes_each):
    plan = plan_run(config(backbone="e5-mistral", cache=str(tmp_path), lora=LoraConfig(quantization=kind)))
    linear = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    others = plan["parameters"] - linear
    assert plan["memory"]["weights"] == pytest.approx(linear * bytes_each + 2 * others, rel=2e-3)


@pytest.mark.parametrize("cached", [True, False])
def test_the_states_of_the_prefix_cache_are_named_where_there_are_some(config, cached):
    notes = plan_run(config(adapt_top=1, prefix_cache=cached))["notes"]
    assert any("prefix cache" in note for note in notes) == cached


def test_frozen_blocks_below_the_adapted_ones_keep_no_states(config):
    every, top = (plan_run(config(adapt_top=k))["memory"]["activations"] for k in (2, 1))
    assert top == every / 2
