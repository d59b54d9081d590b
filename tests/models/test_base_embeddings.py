from pathlib import Path

import pytest
import torch

from models.base_embeddings import base_embeddings
from models.embedder import encode, load_embedder
from models.lora import add_lora

TEXTS = ["1, 2, 3", "5, 25, 125, 625", "2, 4"]


def test_is_the_base_whatever_the_adapter_has_become(tiny_folder: Path) -> None:
    expected = encode(load_embedder(tiny_folder), TEXTS)
    embedder = load_embedder(tiny_folder)
    add_lora(embedder, r=2, alpha=4, dropout=0.5, targets=["q_proj", "down_proj"])
    trainable = {name: each for name, each in embedder.named_parameters() if each.requires_grad}
    with torch.no_grad():
        for weight in trainable.values():
            weight.add_(0.3)
    embedder.train()
    changed = encode(embedder, TEXTS)
    assert torch.equal(base_embeddings(embedder, TEXTS), expected)
    assert embedder.training
    assert torch.equal(encode(embedder, TEXTS), changed)
    assert (changed - expected).abs().max() > 1e-3
    assert {name for name, each in embedder.named_parameters() if each.requires_grad} == set(trainable)


def test_without_an_adapter_there_is_no_base(tiny_folder: Path) -> None:
    with pytest.raises(ValueError, match="embedder: expected one with an adapter"):
        base_embeddings(load_embedder(tiny_folder), TEXTS)
