"""The columns of the table of backbones: one function a column, which tries it and says ``yes`` or ``no: reason``.

A function raises AssertionError where what it finds is neither: where something fails that ought to work, and where
something that is said to be impossible turns out to work. The comparisons are with plain transformers, PEFT and
sentence-transformers, and with the recipe of the model's card.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
from peft import PeftModel
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import AutoModel

from models.adapter import transformer_of
from models.carrying import adapter_obstacle
from models.checkpointing import checkpoint_blocks
from models.embedder import encode
from models.lora import block_stack
from tests.backbones.four_bit import four_bit
from tests.backbones.hub_model import TASK, TEXTS, HubModel, loss_of, trains, weights_of
from tests.backbones.refusal import refused
from tests.models.test_hub_folders import by_the_card

UNREAD = ("lm_head.", "classifier.")
"""Heads that are in a repository's file and in no embedding."""


def load(hub: HubModel) -> str:
    """The model in memory is the numbers of the file: as many of them, with the same sum of squares, however named."""
    embedder = hub.load()
    stored = [each for name, each in weights_of(hub.folder).items() if not name.startswith(UNREAD)]
    stored += [each for layer in hub.folder.glob("*_Dense") for each in load_file(layer / "model.safetensors").values()]
    held = list(embedder.parameters())
    assert sum(each.numel() for each in held) == sum(each.numel() for each in stored)
    assert math.isclose(square_sum(held), square_sum(stored), rel_tol=1e-12)
    assert encode(embedder, TEXTS).shape == (len(TEXTS), embedder.get_embedding_dimension())
    return "yes"


def pool(hub: HubModel) -> str:
    """Embeddings are those of the card's recipe, alone and in a padded batch."""
    same_as_card(hub, hub.load(), hub.prompt, TEXTS)
    return "yes"


def prompt(hub: HubModel) -> str:
    """Each prompt of the card leads to the recipe's embeddings; where there is none, nothing is put before a text."""
    embedder = hub.load()
    if not hub.row.prompts:
        torch.testing.assert_close(encode(embedder, TEXTS), card(hub, "", TEXTS), rtol=0, atol=1e-6)
        return "no: the card has none"
    for name, text in hub.row.prompts.items():
        if "{task}" not in text:
            assert name in embedder.prompts
        same_as_card(hub, embedder, text.format(task=TASK), TEXTS[:2])
    return "yes"


def causality(hub: HubModel) -> str:
    """A later token changes an earlier state where the row says bidirectional, and only there; with padding too."""
    embedder = hub.load()
    features = embedder.preprocess([TEXTS[1], TEXTS[1], TEXTS[1] + TEXTS[1]])
    width = int(features["attention_mask"][0].sum())
    start = features["input_ids"].shape[1] - width if hub.row.padding_side == "left" else 0
    changed = start + width - 3
    digit = embedder.tokenizer.convert_tokens_to_ids(embedder.tokenizer.tokenize("7"))[-1]
    assert features["input_ids"][1, changed] != digit
    features["input_ids"][1, changed] = digit
    with torch.no_grad():
        states = embedder[0](features)["token_embeddings"]
    difference = (states[0] - states[1])[start:changed].abs().max().item()
    if hub.row.attention == "bidirectional":
        assert difference > 1e-5, difference
    else:
        assert difference < 1e-6, difference
    return "yes"


def lora(hub: HubModel) -> str:
    """Unchanged at first; three steps change the embeddings, through a gradient at every adapted layer and no other."""
    torch.testing.assert_close(
        encode(hub.adapted(), TEXTS, prompt=hub.prompt), encode(hub.load(), TEXTS, prompt=hub.prompt), rtol=0, atol=1e-6
    )
    trains(hub.trained)
    names = {name for name, _ in hub.trained.named_parameters() if ".lora_" in name}
    for target in (*hub.row.lora_targets, *(each.rpartition(".")[2] for each in hub.row.expert_parameters)):
        assert any(target in name for name in names) or hub.row.expert_parameters, target
    before = encode(hub.load(), TEXTS, prompt=hub.prompt)
    assert (hub.embeddings - before).abs().max() > 1e-3
    return "yes"


def checkpointing(hub: HubModel) -> str:
    """Every block is computed a second time in the backward pass, and loss and gradients are the same numbers."""
    plain, again = hub.adapted().train(), hub.adapted().train()
    blocks = checkpoint_blocks(again)
    runs = []
    for block in block_stack(transformer_of(again))[1]:
        block.register_forward_pre_hook(lambda *_: runs.append(1))
        next(block.children()).register_forward_pre_hook(lambda *_: runs.append(2))
    found = []
    for embedder in (plain, again):
        torch.manual_seed(3)
        loss = loss_of(embedder)
        loss.backward()
        grads = {name: weight.grad for name, weight in embedder.named_parameters() if weight.grad is not None}
        found.append((loss, grads))
    assert runs.count(2) == 2 * blocks, runs
    (one, expected), (two, grads) = found
    assert torch.equal(one, two)
    assert expected.keys() == grads.keys()
    assert all(torch.equal(grads[name], expected[name]) for name in expected)
    assert max(each.abs().max() for each in expected.values()) > 0
    return "yes"


def adapter_round_trip(hub: HubModel) -> str:
    """The saved adapter finds its base again and gives the trained embeddings."""
    again = hub.open(hub.stage)
    torch.testing.assert_close(encode(again, TEXTS, prompt=hub.prompt), hub.embeddings, rtol=0, atol=1e-6)
    return "yes"


def peft_load(hub: HubModel) -> str:
    """Plain transformers and PEFT give the trained states from the base's folder and the adapter's; or provably not."""
    obstacle = adapter_obstacle(hub.folder)
    features = hub.trained.preprocess(TEXTS)
    inputs = {name: features[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        states = hub.trained[0](dict(features))["token_embeddings"]
    if obstacle is not None and not obstacle.startswith("the causal mask"):
        # No class for the folder's settings, or one that has other tensors.
        refused(partial(plain_peft, hub), "custom code|ignore_mismatched_sizes")
        return f"no: {obstacle}"
    with torch.no_grad():
        difference = (plain_peft(hub)(**inputs).last_hidden_state - states)[inputs["attention_mask"].bool()].abs().max()
    if obstacle is None:
        assert difference < 1e-5, difference
        return "yes"
    assert difference > 1e-2, (obstacle, difference)
    return f"no: {obstacle}"


def merged_round_trip(hub: HubModel) -> str:
    """The adapter folded into its base over files is a folder that plain sentence-transformers loads; or provably not."""
    folder = hub.merged([hub.stage], method="passthrough")
    torch.testing.assert_close(encode(hub.open(folder), TEXTS, prompt=hub.prompt), hub.embeddings, rtol=0, atol=1e-5)
    plain = partial(SentenceTransformer, str(folder), device="cpu", local_files_only=True, trust_remote_code=False)
    if hub.row.expert_parameters:
        refused(plain, "nomic_bert_moe.*does not recognize this architecture")
        return f"no: {adapter_obstacle(hub.folder)}"
    torch.testing.assert_close(encode(plain(), TEXTS, prompt=hub.prompt), hub.embeddings, rtol=0, atol=1e-5)
    return "yes"


def slerp(hub: HubModel) -> str:
    """Half-way along the arc from the base to the trained model, by files: each tensor by the formula in float64."""
    folder = hub.merged([hub.folder, hub.stage], method="slerp", t=0.5)
    end = hub.merged([hub.stage], method="passthrough")
    base, last, half = (weights_of(each) for each in (hub.folder, end, folder))
    changed = [name for name in base if not torch.equal(base[name], last[name])]
    assert changed
    assert base.keys() == half.keys()
    for name in base:
        torch.testing.assert_close(half[name].double(), arc(base[name], last[name]), rtol=0, atol=1e-6)
    assert encode(hub.open(folder), TEXTS, prompt=hub.prompt).isfinite().all()
    return "yes"


COLUMNS: Mapping[str, Callable[[HubModel], str]] = MappingProxyType(
    {
        "load": load,
        "pool": pool,
        "prompt": prompt,
        "causality": causality,
        "LoRA": lora,
        "4-bit": four_bit,
        "checkpointing": checkpointing,
        "adapter round trip": adapter_round_trip,
        "merged round trip": merged_round_trip,
        "PEFT load": peft_load,
        "SLERP from files": slerp,
    }
)
"""The functions by the heads of the table's columns."""


def plain_peft(hub: HubModel) -> PeftModel:
    """The stage on its base, by nothing of this package."""
    base = AutoModel.from_pretrained(
        hub.folder, attn_implementation="eager", local_files_only=True, trust_remote_code=False
    )
    return PeftModel.from_pretrained(base, str(hub.stage)).eval()


def card(hub: HubModel, prefix: str, texts: list[str]) -> Tensor:
    """The embeddings of the card's recipe in plain transformers, each computed once."""
    for text in texts:
        if (prefix, text) not in hub.cards:
            hub.cards[prefix, text] = by_the_card(hub.folder, hub.name, prefix, [text])
    return torch.cat([hub.cards[prefix, text] for text in texts])


def same_as_card(hub: HubModel, embedder: SentenceTransformer, prefix: str, texts: list[str]) -> None:
    expected = card(hub, prefix, texts)
    torch.testing.assert_close(encode(embedder, texts, prompt=prefix), expected, rtol=0, atol=1e-6)
    alone = torch.cat([encode(embedder, [text], prompt=prefix) for text in texts])
    torch.testing.assert_close(alone, expected, rtol=0, atol=1e-6)


def square_sum(tensors: list[Tensor]) -> float:
    return math.fsum(each.detach().double().square().sum().item() for each in tensors)


def arc(start: Tensor, end: Tensor) -> Tensor:
    """The middle of the arc between two tensors, lengths interpolated, in float64."""
    first, second = start.double(), end.double()
    lengths = first.norm(), second.norm()
    if torch.equal(first, second) or 0 in lengths:
        return (first + second) / 2
    cosine = ((first / lengths[0]) * (second / lengths[1])).sum().clamp(-1, 1)
    angle = torch.arccos(cosine)
    if angle < 1e-7:
        return (first + second) / 2
    direction = (first / lengths[0] + second / lengths[1]) * torch.sin(angle / 2) / torch.sin(angle)
    return direction * (lengths[0] + lengths[1]) / 2
