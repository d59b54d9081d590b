"""What a run proves before it writes anything."""

import pytest
import torch

from data.suites import paper_suite
from lightning_app.config import LoraConfig, TrainConfig
from lightning_app.preparation import prepare
from lightning_app.stages import read_run_data
from models.embedder import encode, load_embedder


@pytest.mark.parametrize(("top", "layers"), [(None, {"0", "1"}), (1, {"1"})])
def test_the_adapter_is_on_the_layers_asked_for_and_is_still_the_identity(tiny_folder, top, layers):
    config = TrainConfig(backbone=str(tiny_folder), lora=LoraConfig(r=2, targets=("q_proj",)), adapt_top=top)
    run = prepare(config, read_run_data(config))
    trained = [name for name, parameter in run.embedder.named_parameters() if parameter.requires_grad]
    assert {name.split(".layers.")[1].split(".")[0] for name in trained} == layers
    assert all(".q_proj.lora_" in name for name in trained)
    assert run.adapts
    assert run.base == tiny_folder
    texts = paper_suite().texts
    assert torch.equal(run.encode(texts), encode(load_embedder(tiny_folder), texts))


def test_a_model_from_scratch_is_trained_whole():
    config = TrainConfig(backbone="tiny-encoder")
    run = prepare(config, read_run_data(config))
    assert not run.adapts
    assert run.base is None
    assert all(parameter.requires_grad for parameter in run.embedder.parameters())
