"""Gradient checkpointing: the same numbers, computed twice; that all models have it is in test_adapting."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from models.checkpointing import checkpoint_blocks
from models.embedder import encode, load_embedder
from models.lora import add_lora, block_stack
from models.losses import supervised_contrastive_loss


def gradients(embedder: SentenceTransformer, texts: list[str], labels: Tensor) -> dict[str, Tensor]:
    embedder.train().zero_grad()
    torch.manual_seed(3)
    loss = supervised_contrastive_loss(embedder(embedder.preprocess(texts))["sentence_embedding"], labels)
    loss.backward()
    found = {name: each.grad for name, each in embedder.named_parameters() if each.grad is not None}
    return {"loss": loss.detach(), **found}


def counted(embedder: SentenceTransformer) -> Counter[int]:
    """How often each block's first layer norm is computed from here on."""
    calls: Counter[int] = Counter()
    _, stack = block_stack(embedder[0].model)
    for index, block in enumerate(stack):
        block.input_layernorm.register_forward_hook(lambda *_, index=index: calls.update([index]))
    return calls


def test_dropout_is_drawn_again_as_it_was(tiny_folder: Path, texts: list[str], labels: Tensor) -> None:
    plain, checkpointed = load_embedder(tiny_folder), load_embedder(tiny_folder)
    for embedder in (plain, checkpointed):
        add_lora(embedder, r=2, dropout=0.5)
        for name, parameter in embedder.named_parameters():
            if ".lora_B." in name:
                nn.init.constant_(parameter, 0.1)
    assert checkpoint_blocks(checkpointed) == 2
    expected, found = gradients(plain, texts, labels), gradients(checkpointed, texts, labels)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    embedder.train()
    torch.manual_seed(4)
    other = supervised_contrastive_loss(embedder(embedder.preprocess(texts))["sentence_embedding"], labels)
    assert other != expected["loss"]


def test_a_model_from_scratch_has_the_same_gradients_too(texts: list[str], labels: Tensor) -> None:
    plain, checkpointed = load_embedder("tiny-encoder"), load_embedder("tiny-encoder")
    assert checkpoint_blocks(checkpointed) == len(block_stack(plain[0].model)[1])
    expected, found = gradients(plain, texts, labels), gradients(checkpointed, texts, labels)
    assert expected.keys() == found.keys()
    assert len(expected) > 20
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_blocks_are_computed_twice_in_training_and_once_in_evaluation(
    tiny_folder: Path, texts: list[str], labels: Tensor
) -> None:
    embedder = load_embedder(tiny_folder)
    before = encode(embedder, texts)
    add_lora(embedder, r=2)
    checkpoint_blocks(embedder)
    calls = counted(embedder)
    gradients(embedder, texts, labels)
    assert calls == {0: 2, 1: 2}
    calls.clear()
    embedder.eval()
    assert torch.equal(encode(embedder, texts), before)
    assert calls == {0: 1, 1: 1}


def test_blocks_below_the_lowest_adapter_are_not_computed_again(
    tiny_folder: Path, texts: list[str], labels: Tensor
) -> None:
    embedder = load_embedder(tiny_folder)
    add_lora(embedder, r=2, adapt_top=1)
    checkpoint_blocks(embedder)
    calls = counted(embedder)
    gradients(embedder, texts, labels)
    assert calls == {0: 1, 1: 2}


def test_it_is_not_in_what_is_saved(tiny_folder: Path, tmp_path: Path) -> None:
    from models.export import save_embedder

    embedder = load_embedder(tiny_folder)
    checkpoint_blocks(embedder)
    saved = save_embedder(embedder, tmp_path / "saved")
    assert (saved / "config.json").read_bytes() == (tiny_folder / "config.json").read_bytes()


def test_a_model_without_such_blocks_is_refused(tiny_folder: Path) -> None:
    embedder = load_embedder(tiny_folder)
    embedder[0].model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"--gradient-checkpointing: expected a model of transformers' own blocks"):
        checkpoint_blocks(embedder)
