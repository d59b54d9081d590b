"""One run from flags to report, on a tiny model: what the folder holds, and that every part of it loads without us."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from sentence_transformers import SentenceTransformer

import lightning_app.run
from data.suites import broad_suite, paper_suite
from evaluation.report_schema import validate_report
from lightning_app.config import LoraConfig, MergeConfig, StageConfig, TrainConfig
from lightning_app.merging import merge
from lightning_app.run import train
from models.embedder import encode, load_embedder
from storage.json_file import read_json
from storage.manifest import verify_manifest
from storage.tensor_file import read_tensors

STAGES = (
    StageConfig(
        name="broad",
        families=("squares", "multiples_of_3", "totients"),
        epochs=1,
        steps_per_epoch=3,
        learning_rate=1e-2,
    ),
    StageConfig(name="six", families=("six",), epochs=2, steps_per_epoch=2, learning_rate=1e-2),
)
QUICK: dict[str, Any] = {"baselines": False, "permutations": 20, "draws": 2}
"""Little is spent on what chance gives: tests/e2e runs the whole."""
NAMES = ["base", "1-broad", "2-six", "soup", "karcher", "slerp", "linear"]


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory):
    """A finished run, with the embeddings that the training process itself computed."""
    config = TrainConfig(
        **QUICK,
        backbone=str(tiny_folder),
        stages=STAGES,
        lora=LoraConfig(r=4, alpha=8),
        output=str(tmp_path_factory.mktemp("runs") / "main"),
        log_every_n_steps=1,
    )
    embeddings, measure = {}, lightning_app.run.measure

    def recorded(*args, **kwargs):
        found = measure(*args, **kwargs)
        embeddings[kwargs["name"]] = found.embeddings["paper"]
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lightning_app.run, "measure", recorded)
        result = train(config)
    return SimpleNamespace(config=config, folder=Path(config.output), rows=result["rows"], embeddings=embeddings)


def test_the_folder_is_the_one_of_the_contract(finished):
    found = {path.relative_to(finished.folder).as_posix() for path in finished.folder.rglob("*")}
    expected = {"config.json", "environment.json", "report.html", "report.md", "report.json"}
    expected |= {f"projections/{name}.png" for name in NAMES}
    expected |= {f"stages/0-base/{file}" for file in ("metrics.json", "manifest.json")}
    stage_files = ("adapter_model.safetensors", "adapter_config.json", "metrics.json", "manifest.json")
    expected |= {f"stages/{stage}/{file}" for stage in ("1-broad", "2-six") for file in stage_files}
    expected |= {
        f"merged/{name}/{file}" for name in NAMES[3:] for file in ("merge.json", "modules.json", "model.safetensors")
    }
    assert expected <= found
    assert not any(name.endswith((".ckpt", ".bin", ".pt", ".pkl")) for name in found)
    for folder in [*(finished.folder / "stages").iterdir(), *(finished.folder / "merged").iterdir()]:
        verify_manifest(folder)


def test_report_follows_the_schema(finished):
    report = read_json(finished.folder / "report.json")
    validate_report(report)
    assert [row["name"] for row in report["rows"]] == NAMES
    assert [row["family"] for row in report["rows"]] == ["base", "lora", "lora", "soup", "slerp", "slerp", "control"]
    assert report["rows"][0]["retention"] == pytest.approx({"cka": 1, "rsa": 1, "knn": 1, "procrustes": 1})
    assert report["rows"] == finished.rows


def test_the_selection_suite_is_nowhere_to_be_read(finished):
    for file in [*finished.folder.rglob("*.json"), *finished.folder.glob("report.*")]:
        if "resume" not in file.parts:
            assert "selection" not in file.read_text(), file


def test_every_merged_folder_loads_without_us(finished):
    for name in NAMES[3:]:
        plain = SentenceTransformer(str(finished.folder / "merged" / name), device="cpu")
        again = plain.encode(list(paper_suite().texts), convert_to_tensor=True)
        torch.testing.assert_close(again, finished.embeddings[name], atol=1e-5, rtol=0)


def test_every_stage_loads_with_plain_peft(finished, tiny_folder):
    for name in NAMES[1:3]:
        plain = SentenceTransformer(str(tiny_folder), device="cpu")
        plain[0].model = PeftModel.from_pretrained(plain[0].model, str(finished.folder / "stages" / name))
        again = plain.encode(list(paper_suite().texts), convert_to_tensor=True)
        torch.testing.assert_close(again, finished.embeddings[name], atol=1e-5, rtol=0)
        assert (again - finished.embeddings["base"]).abs().max() > 1e-4, "the stage must differ from the base"


def test_the_soup_is_the_mean_of_the_folded_stages(finished, tiny_folder):
    folded = []
    for name in NAMES[1:3]:
        model = PeftModel.from_pretrained(
            SentenceTransformer(str(tiny_folder), device="cpu")[0].model, str(finished.folder / "stages" / name)
        ).merge_and_unload()
        folded.append(model.state_dict())
    soup = read_tensors(finished.folder / "merged" / "soup" / "model.safetensors")
    for name, tensor in soup.items():
        torch.testing.assert_close(tensor, (folded[0][name] + folded[1][name]) / 2, atol=1e-6, rtol=1e-5)


def test_slerp_and_its_control_start_from_the_base(finished, tiny_folder):
    for name in ("slerp", "linear"):
        record = read_json(finished.folder / "merged" / name / "merge.json")
        assert record["space"] == "weight"
        assert len(record["inputs"]) == 2
        assert Path(record["base"]["path"]).name == tiny_folder.name
    assert read_json(finished.folder / "merged" / "karcher" / "merge.json")["space"] == "task_vector"


def test_tensorboard_has_the_four_columns_every_epoch(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished.folder / "tensorboard" / "2-six"))
    events.Reload()
    tags = events.Tags()
    for suite in ("paper", "selection"):
        for column in ("silhouette_true", "davies_bouldin_true", "silhouette_kmeans", "davies_bouldin_kmeans"):
            assert [event.step for event in events.Scalars(f"{suite}/{column}")] == [1, 3]
    assert "projection/paper" in tags["images"]
    assert {"retention/cka", "retention/knn", "train/loss", "train/gradient_norm"} <= set(tags["scalars"])


def test_a_finished_run_is_refused_without_a_flag_and_resumed_with_one(finished):
    with pytest.raises(ValueError, match="--overwrite"):
        train(finished.config)
    before = (finished.folder / "stages" / "2-six" / "manifest.json").read_bytes()
    again = train(replace(finished.config, resume=True))
    assert again["rows"] == finished.rows
    assert (finished.folder / "stages" / "2-six" / "manifest.json").read_bytes() == before


def test_another_learning_rate_is_no_resume(finished):
    stages = (STAGES[0], replace(STAGES[1], learning_rate=5e-3))
    with pytest.raises(ValueError, match=r"stages\.1\.learning_rate: 0\.01 before, 0\.005 now"):
        train(replace(finished.config, stages=stages, resume=True))


class StopHere(Exception):  # noqa: N818
    pass


def test_a_run_stopped_between_epochs_resumes_to_the_same_weights(finished, tmp_path, monkeypatch):
    """The second stage is interrupted after its first epoch; --resume gives what the uninterrupted run gave."""
    from callbacks.projection_plot import ProjectionPlot

    config = replace(finished.config, output=str(tmp_path / "stopped"), merges=())
    original = ProjectionPlot.on_train_epoch_end

    def interrupting(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            raise StopHere
        original(self, trainer, pl_module)

    with monkeypatch.context() as patch:
        patch.setattr(ProjectionPlot, "on_train_epoch_end", interrupting)
        with pytest.raises(StopHere):
            train(config)
    assert not (tmp_path / "stopped" / "stages" / "2-six").exists()
    rows = train(replace(config, resume=True))["rows"]
    one = read_tensors(finished.folder / "stages" / "2-six" / "adapter_model.safetensors")
    two = read_tensors(tmp_path / "stopped" / "stages" / "2-six" / "adapter_model.safetensors")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert rows == finished.rows[:3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adapt_top": 3}, "--adapt-top"),
        ({"backbone": "e5-mistrall"}, "e5-mistral"),
        ({"stages": (StageConfig(name="none"),)}, r"--stages\.0\.families: expected at least 2 families"),
        ({"stages": (StageConfig(name="x", families=("primes", "evenn")),)}, "closest: even"),
        ({"resume": True, "overwrite": True}, "--resume and --overwrite"),
        ({"data": "absent.jsonl"}, "absent.jsonl"),
        ({"temperature": 0.0}, "--temperature: expected a positive number, got 0.0"),
        ({"gradient_clip_val": -1.0}, "--gradient-clip-val"),
        ({"max_steps": 0}, "--max-steps: expected at least 1"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(tiny_folder, tmp_path, change, message):
    config = TrainConfig(
        **QUICK | {"backbone": str(tiny_folder), "stages": STAGES, "output": str(tmp_path / "run")} | change
    )
    with pytest.raises(ValueError, match=message):
        train(config)
    assert list(tmp_path.iterdir()) == []


def test_own_text_with_a_tail_that_the_model_cannot_read_is_refused(tiny_folder, tmp_path):
    file = tmp_path / "long.jsonl"
    texts = [("a", "short one"), ("a", "short two"), ("b", "x" * 3000), ("b", "short four")]
    file.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for label, text in texts))
    with pytest.raises(ValueError, match=r"long\.jsonl: expected texts of at most 1024 tokens"):
        train(TrainConfig(**QUICK, backbone=str(tiny_folder), data=str(file), output=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_own_text_is_trained_on_and_reported_on_what_was_held_back(tiny_folder, tmp_path):
    file = tmp_path / "mine.jsonl"
    rows = [{"text": f"{word} number {i}", "label": word} for word in ("red", "green", "blue") for i in range(15)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = StageConfig(name="mine", epochs=1, steps_per_epoch=2)
    result = train(
        TrainConfig(**QUICK, backbone=str(tiny_folder), data=str(file), stages=(stage,), output=str(tmp_path / "run"))
    )
    assert [row["name"] for row in result["rows"]] == ["base", "1-mine", "slerp", "linear"]
    assert result["rows"][1]["suites"].keys() == {"data"}
    assert result["rows"][1]["suites"]["data"]["silhouette_true"] is not None


def test_a_folder_laid_out_like_e5_mistral_goes_the_whole_way(make_mistral, tmp_path):
    """Last-token pooling: the merged folder must end every text with EOS by itself, or plain loading pools the last digit."""
    base = make_mistral(tmp_path / "e5", max_tokens=1024)
    config = TrainConfig(
        **QUICK, backbone=str(base), stages=STAGES[1:], output=str(tmp_path / "run"), merges=("linear",)
    )
    rows = train(config)["rows"]
    assert [row["name"] for row in rows] == ["base", "1-six", "linear"]
    merged = tmp_path / "run" / "merged" / "linear"
    plain = SentenceTransformer(str(merged), device="cpu")
    assert plain.tokenizer("1, 2")["input_ids"][-1] == plain.tokenizer.eos_token_id
    ours = encode(load_embedder(merged), paper_suite().texts)
    torch.testing.assert_close(plain.encode(list(paper_suite().texts), convert_to_tensor=True), ours, atol=1e-6, rtol=0)
    by_command = merge(
        MergeConfig(
            method="linear",
            inputs=(str(base), str(tmp_path / "run" / "stages" / "1-six")),
            base=str(base),
            t=0.5,
            output=str(tmp_path / "by-command"),
        )
    )
    again = SentenceTransformer(by_command["output"], device="cpu").encode(
        list(paper_suite().texts), convert_to_tensor=True
    )
    torch.testing.assert_close(again, ours, atol=1e-6, rtol=0)


def test_the_encoder_is_trained_from_scratch_as_whole_folders(tmp_path):
    config = TrainConfig(
        **QUICK, backbone="tiny-encoder", stages=STAGES[1:], output=str(tmp_path / "run"), merges=("slerp",)
    )
    result = train(config)
    assert [row["family"] for row in result["rows"]] == ["base", "encoder", "slerp"]
    for stage in ("0-base", "1-six"):
        assert SentenceTransformer(str(tmp_path / "run" / "stages" / stage), device="cpu").encode(["1, 2"]).shape == (
            1,
            128,
        )


def test_a_loss_that_is_not_finite_ends_the_command_with_1_and_keeps_the_last_epoch(tiny_folder, tmp_path):
    """A learning rate of 1e30 blows the weights up at the first step."""
    stage = {"name": "six", "families": ["six"], "epochs": 2, "steps_per_epoch": 2, "learning_rate": 1e30}
    (tmp_path / "c.json").write_text(json.dumps({"stages": [stage]}))
    command = [sys.executable, "train.py", "--backbone", str(tiny_folder), "--config", str(tmp_path / "c.json")]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "run"), "--gradient-clip-val", "1e30"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "loss: expected a finite number, got nan in epoch 0, step" in done.stderr.splitlines()[-1]
    assert not list((tmp_path / "run" / "stages").glob("1-*"))
    assert (tmp_path / "run" / "stages" / "0-base" / "manifest.json").is_file()


def test_suites_are_not_computed_twice():
    """Suites are cached: the broad suite's 304 texts are made once a process."""
    assert broad_suite() is broad_suite()


def test_the_terms_of_a_base_are_shown_for_a_folder_too(tmp_path, capfd):
    code = {"auto_map": {"AutoModel": "llama_bidirectional_model.LlamaBidirectionalModel"}}
    (tmp_path / "config.json").write_text(json.dumps(code))
    for backbone in (str(tmp_path), "nemotron-8b"):
        lightning_app.run._announce_licence(TrainConfig(backbone=backbone))
        assert "non-commercial" in capfd.readouterr().err
    lightning_app.run._announce_licence(TrainConfig(backbone="tiny-llm"))
    assert capfd.readouterr().err == ""
