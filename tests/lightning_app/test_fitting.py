"""A stage of every kind of adapter: trained, saved, loaded on its own, and gone on from."""

from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense

from lightning_app import fitting, preparation
from lightning_app.config import LoraConfig, StageConfig, TrainConfig
from lightning_app.fitting import fit_stage, load_stage
from lightning_app.preparation import prepare
from lightning_app.stages import read_run_data
from merging import merge_checkpoints
from models.embedder import encode, load_embedder
from models.export import save_embedder
from models.tiny_llm import build_tiny_llm
from storage.json_file import read_json
from storage.tensor_file import read_tensors

TEXTS = ["1, 2, 3, 4", "5, 6, 7", "2, 4, 8, 16, 32"]
STAGE = StageConfig(name="six", families=("six",), epochs=1, steps_per_epoch=2, learning_rate=1e-2)


@pytest.fixture(scope="module")
def dense_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny LLM with a Dense module behind its pooling."""
    plain = load_embedder(tiny_folder)
    torch.manual_seed(4)
    embedder = SentenceTransformer(modules=[plain[0], plain[1], Dense(32, 24), plain[2]], device="cpu")
    return save_embedder(embedder, tmp_path_factory.mktemp("models") / "dense")


@pytest.fixture(autouse=True)
def no_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths of the texts are not looked at, which takes the time of all the rest."""
    monkeypatch.setattr(preparation, "check_lengths", lambda *_, **__: None)


def test_a_stage_carries_everything_that_was_trained(dense_folder: Path, tmp_path: Path) -> None:
    """DoRA, rsLoRA, a removed mask, Dense modules and checkpointing at once."""
    lora = LoraConfig(r=2, use_dora=True, use_rslora=True, dense="train")
    config = TrainConfig(
        backbone=str(dense_folder),
        lora=lora,
        stages=(STAGE,),
        merges=(),
        bidirectional=True,
        gradient_checkpointing=True,
        output=str(tmp_path / "run"),
    )
    run = prepare(config, read_run_data(config))
    before, weight = encode(run.embedder, TEXTS), run.embedder[2].linear.weight.detach().clone()
    target = tmp_path / "run" / "stages" / "1-six"
    fit_stage(run, run.data.stages[0], target, folder=tmp_path / "run", suites={})
    after = encode(run.embedder, TEXTS)
    assert (after - before).abs().max() > 1e-3
    stored = read_tensors(target / "dense.safetensors")
    assert not torch.equal(stored["dense.2.linear.weight"], weight)
    assert "dense.safetensors" in read_json(target / "manifest.json")["files"]
    assert "rsDoRA of rank 2" in (target / "README.md").read_text()
    torch.testing.assert_close(encode(load_embedder(target), TEXTS), after, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"dense\.safetensors: expected adapter_model\.safetensors only"):
        merge_checkpoints([target], tmp_path / "merged", method="passthrough")
    resumed = prepare(config, read_run_data(config))
    load_stage(resumed, target)
    assert torch.equal(encode(resumed.embedder, TEXTS), after)
    assert all(each.requires_grad for each in resumed.embedder[2].parameters())


def test_a_stage_over_four_bits_is_an_adapter_of_the_whole_base(tmp_path: Path) -> None:
    wide = save_embedder(
        build_tiny_llm(hidden_size=64, layers=1, heads=2, intermediate_size=64, seed=1), tmp_path / "w"
    )
    config = TrainConfig(
        backbone=str(wide), lora=LoraConfig(r=2, quantization="nf4"), stages=(STAGE,), output=str(tmp_path / "run")
    )
    run = prepare(config, read_run_data(config))
    target = tmp_path / "run" / "stages" / "1-six"
    fit_stage(run, run.data.stages[0], target, folder=tmp_path / "run", suites={})
    factors = read_tensors(target / "adapter_model.safetensors")
    assert {each.dtype for each in factors.values()} == {torch.float32}
    assert read_json(target / "manifest.json")["base"]["path"] == str(wide)
    quantised = load_embedder(target, quantization="nf4")
    assert torch.equal(encode(quantised, TEXTS), encode(run.embedder, TEXTS))
    assert encode(load_embedder(target), TEXTS).isfinite().all()


def test_a_stage_that_does_not_load_as_it_was_trained_leaves_no_folder(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resume would take it for a finished stage."""

    def refuse(*_: object) -> float:
        raise ValueError("expected embeddings within 1e-05")

    monkeypatch.setattr(fitting, "check_adapter_roundtrip", refuse)
    config = TrainConfig(
        backbone=str(tiny_folder), lora=LoraConfig(r=2), stages=(STAGE,), output=str(tmp_path / "run"), merges=()
    )
    run = prepare(config, read_run_data(config))
    target = tmp_path / "run" / "stages" / "1-six"
    with pytest.raises(ValueError, match="expected embeddings within"):
        fit_stage(run, run.data.stages[0], target, folder=tmp_path / "run", suites={})
    assert not target.exists()
