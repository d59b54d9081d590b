"""Every model of the paper's table, adapted in every way, on tiny folders laid out like its repository."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer

from models.adapter import adapter_state, load_adapter_weights
from models.backbones import BACKBONES
from models.checkpointing import checkpoint_blocks
from models.embedder import encode, load_embedder
from models.lora import add_lora
from models.losses import supervised_contrastive_loss
from models.preflight import Preflight, preflight
from tests.models.hub_folders import NAMES, tiny_rows, write_hub_folder

TEXTS = ["1, 2, 3, 4", "5, 6, 7", "2, 4, 8, 16, 32", "3, 9, 27"]
Bases = dict[str, SentenceTransformer]
LABELS = torch.tensor([0, 0, 1, 1])
WAYS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "top": {"adapt_top": 1},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """Each model as it is loaded, and only copied from."""
    cache = tmp_path_factory.mktemp("hub")
    found = {}
    with tiny_rows():
        for name in NAMES:
            write_hub_folder(cache, name)
            found[name] = load_embedder(name, cache=cache, offline=True)
    return found


def adapted(bases: Bases, name: str, way: str, *, seed: int = 0) -> SentenceTransformer:
    row = BACKBONES[name]
    embedder = copy.deepcopy(bases[name])
    experts = () if way == "dora" else row.expert_parameters
    add_lora(embedder, r=2, targets=row.lora_targets, expert_parameters=experts, seed=seed, **WAYS[way])
    return embedder


def check(embedder: SentenceTransformer) -> Preflight:
    return preflight(embedder, TEXTS, LABELS, supervised_contrastive_loss)


def train(embedder: SentenceTransformer) -> None:
    embedder.train()
    optimizer = torch.optim.AdamW([each for each in embedder.parameters() if each.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        supervised_contrastive_loss(embedder(embedder.preprocess(TEXTS))["sentence_embedding"], LABELS).backward()
        optimizer.step()
    embedder.eval()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_three_steps_change_the_embeddings_and_the_state_makes_them_again(name: str, way: str, bases: Bases) -> None:
    embedder = adapted(bases, name, way)
    found = check(embedder)
    layers = {part.split("layer.")[-1].split("layers.")[-1].split(".")[0] for part in found.adapted}
    assert len(layers) == (1 if way == "top" else embedder[0].model.config.num_hidden_layers)
    before = encode(embedder, TEXTS)
    train(embedder)
    after = encode(embedder, TEXTS)
    assert (after - before).abs().max() > 1e-3
    state = adapter_state(embedder)
    assert any("lora_magnitude_vector" in each for each in state) == (way == "dora")
    assert any(".experts." in each for each in state) == (name == "nomic-moe" and way != "dora")
    again = adapted(bases, name, way, seed=1)
    assert not torch.equal(encode(again, TEXTS), after)
    load_adapter_weights(again, state)
    assert torch.equal(encode(again, TEXTS), after)


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_changes_no_bit_of_a_gradient(name: str, bases: Bases) -> None:
    found = []
    for checkpointed in (False, True):
        embedder = adapted(bases, name, "lora")
        if checkpointed:
            assert checkpoint_blocks(embedder) == embedder[0].model.config.num_hidden_layers
            check(embedder)
        for parameter_name, parameter in embedder.named_parameters():
            if ".lora_B." in parameter_name:
                torch.nn.init.constant_(parameter, 0.01)
        embedder.train()
        torch.manual_seed(7)  # three of the models have dropout
        loss = supervised_contrastive_loss(embedder(embedder.preprocess(TEXTS))["sentence_embedding"], LABELS)
        loss.backward()
        gradients = {key: each.grad for key, each in embedder.named_parameters() if each.requires_grad}
        found.append({"loss": loss.detach(), **gradients})
    plain, again = found
    assert plain.keys() == again.keys()
    assert len(plain) > 10
    for key, value in plain.items():
        assert bool(value.any()), key
        assert torch.equal(value, again[key]), key
