"""FSDP2 through the Trainer on two gloo ranks: gradients, metrics, checkpoints and adapters of one process."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from peft import PeftModel
from torch.distributed.tensor import DTensor
from transformers import AutoModel

from callbacks.clustering_metrics import ClusteringMetrics
from callbacks.stage_checkpoint import StageCheckpoint
from data.suites import paper_suite
from lightning_app.config import LoraConfig, StageConfig, TrainConfig
from lightning_app.trainer import build_trainer
from models.adapter import adapter_state
from models.embedder import encode
from models.export import save_adapter
from models.sharding import whole_tensor
from storage.json_file import read_json, write_json
from storage.tensor_file import read_tensors, write_tensors
from tests.lightning_app.one_step import ForkedSharding

TEXTS = ["1, 2, 3", "2, 4, 8, 16"]


@pytest.fixture
def sharded():
    return ForkedSharding(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")


class Gradients(Callback):
    """Writes the gradients before and after clipping, and whether the weights are spread."""

    def __init__(self, folder: Path):
        self.folder = folder

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.write(trainer, pl_module, "before")

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.write(trainer, pl_module, "after")

    def write(self, trainer, pl_module, when):
        grads = {name: whole_tensor(p.grad) for name, p in pl_module.named_parameters() if p.grad is not None}
        if trainer.is_global_zero and grads:
            write_tensors(self.folder / f"{when}.safetensors", grads)
            write_json(self.folder / "spread.json", [isinstance(p, DTensor) for p in pl_module.parameters()])


def test_gradients_are_those_of_one_process_and_are_clipped_alike(fit, sharded, tmp_path):
    found = []
    weights = fit(steps=8, learning_rate=1e-2).state_dict()
    for devices, more in ((1, {}), (2, {"strategy": sharded})):
        folder = tmp_path / f"{devices}"
        folder.mkdir()
        fit(steps=1, devices=devices, weights=weights, callbacks=[Gradients(folder)], **more)
        found.append({when: read_tensors(folder / f"{when}.safetensors") for when in ("before", "after")})
        assert set(read_json(folder / "spread.json")) == {devices == 2}
    one, two = found
    assert max(g.abs().max() for g in one["before"].values()) > 1e-3, "a comparison of zeros shows nothing"
    for when, grads in one.items():
        assert grads.keys() == two[when].keys()
        for name, grad in grads.items():
            torch.testing.assert_close(two[when][name], grad, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


class Save:
    """What a stage does at its end: the adapter of the embedder that the run holds, and the metrics."""

    def __init__(self, folder: Path, embedder, base: Path):
        self.folder, self.embedder, self.base = folder, embedder, base

    def __call__(self, metrics):
        save_adapter(
            self.embedder, self.folder, base_name="tiny", base_folder=self.base, json_files={"m.json": metrics}
        )


@pytest.fixture
def train(tiny_folder, tmp_path, monkeypatch):
    """``train(name, devices=, resume=, stop=)``: a stage by the run's own trainer; returns its module."""
    from data.datamodule import LabelledDataModule
    from lightning_app import trainer as trainers
    from lightning_app.module import ContrastiveEmbedder
    from models.embedder import load_embedder
    from models.lora import add_lora
    from tests.conftest import short_texts

    monkeypatch.setattr(trainers, "ShardedStrategy", ForkedSharding)

    def run(name, *, devices, epochs=2, resume=None):
        torch.manual_seed(0)
        embedder = load_embedder(tiny_folder)
        add_lora(embedder, r=3, alpha=8, dropout=0.0, targets=["q_proj", "v_proj", "down_proj"])
        module = ContrastiveEmbedder(embedder, learning_rate=1e-3, total_steps=8)
        data = LabelledDataModule(short_texts(), classes=4, per_class=4, batches=4, seed=0, collate=module.collate)
        folder = tmp_path / name
        config = TrainConfig(output=str(folder), devices=devices, strategy="fsdp", accelerator="cpu")
        trainer = build_trainer(
            config,
            StageConfig(name="one", epochs=epochs, steps_per_epoch=4),
            folder=folder,
            name="1",
            callbacks=[
                ClusteringMetrics({"paper": paper_suite()}),
                StageCheckpoint(Save(folder / "stage", embedder, tiny_folder), monitor=None),
            ],
            selects=False,
        )
        embedder.train()
        trainer.fit(module, datamodule=data, ckpt_path=resume)
        return embedder

    return run


def test_a_stage_is_measured_saved_and_gone_on_with_whatever_the_ranks(train, tmp_path, tiny_folder):
    one, two = train("one", devices=1), train("two", devices=2)
    expected, found = (read_json(tmp_path / name / "stage" / "m.json")["epochs"] for name in ("one", "two"))
    assert [each.keys() for each in found] == [each.keys() for each in expected]
    assert "paper/silhouette_true" in found[0]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3, nan_ok=True)
    # What the run holds, what it saved, and what plain PEFT makes of it.
    saved = read_tensors(tmp_path / "two" / "stage" / "adapter_model.safetensors")
    held = adapter_state(two)
    assert saved.keys() == held.keys()
    for name, tensor in adapter_state(one).items():
        assert torch.equal(saved[name], held[name])
        torch.testing.assert_close(saved[name], tensor, atol=1e-4, rtol=0)
    assert max(each.abs().max() for name, each in saved.items() if "lora_B" in name) > 1e-4
    plain = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_folder), tmp_path / "two" / "stage")
    with torch.no_grad():
        features = two.preprocess(TEXTS)
        states = plain(**{name: features[name] for name in ("input_ids", "attention_mask")}).last_hidden_state
        ours = two[0](dict(features))["token_embeddings"]
    torch.testing.assert_close(states, ours, atol=1e-5, rtol=0)
    assert encode(two, TEXTS).shape[0] == 2


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 2)])
def test_a_checkpoint_is_gone_on_with_by_as_many_ranks_as_there_are(train, tmp_path, before, after):
    expected = adapter_state(train("whole", devices=1))
    train("first", devices=before, epochs=1)
    checkpoint = tmp_path / "first" / "resume" / "1"
    moments = [each for name, each in read_tensors(checkpoint / "state.safetensors").items() if "exp_avg" in name]
    assert moments
    assert all(each.abs().max() > 0 for each in moments)
    found = adapter_state(train("second", devices=after, resume=str(checkpoint)))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_whole_run_over_two_ranks_ends_as_over_one(tiny_folder, tmp_path, monkeypatch):
    from lightning_app import trainer as trainers
    from lightning_app.run import train as whole_run

    monkeypatch.setattr(trainers, "ShardedStrategy", ForkedSharding)
    found = {}
    for devices in (1, 2):
        config = TrainConfig(
            backbone=str(tiny_folder),
            stages=(StageConfig(name="squares", families=("squares", "totients"), epochs=1, steps_per_epoch=2),),
            lora=LoraConfig(r=4, alpha=8),
            merges=("slerp",),
            strategy="fsdp",
            accelerator="cpu",
            devices=devices,
            output=str(tmp_path / f"{devices}"),
            baselines=False,
            permutations=20,
            draws=2,
        )
        found[devices] = {row["name"]: row for row in whole_run(config)["rows"]}
    assert list(found[1]) == list(found[2]) == ["base", "1-squares", "slerp"]
    for name, row in found[1].items():
        for column in ("silhouette_true", "davies_bouldin_true"):
            assert found[2][name][column] == pytest.approx(row[column], abs=1e-3), (name, column)
    assert found[2]["1-squares"]["silhouette_true"] != found[2]["base"]["silhouette_true"]


def test_a_base_in_few_bits_is_refused_before_anything_is_written(tiny_folder, tmp_path):
    from lightning_app.run import train as whole_run

    config = TrainConfig(
        backbone=str(tiny_folder),
        strategy="fsdp",
        devices=2,
        lora=LoraConfig(quantization="nf4"),
        output=str(tmp_path / "run"),
    )
    with pytest.raises(
        ValueError, match="--strategy fsdp: expected a base in full precision, got --lora.quantization nf4"
    ):
        whole_run(config)
    assert not (tmp_path / "run").exists()
