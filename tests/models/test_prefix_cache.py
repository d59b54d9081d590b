"""Passes that begin at the lowest adapted block, against the same passes through all blocks."""

from __future__ import annotations

import copy
import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import BertConfig, BertModel, T5Config, T5EncoderModel

from models.adapter import transformer_of
from models.backbones import BACKBONES
from models.checkpointing import checkpoint_blocks
from models.embedder import encode, load_embedder
from models.gradient_cache import embed_parts
from models.lora import add_lora, block_stack
from models.losses import supervised_contrastive_loss
from models.prefix_cache import STATES, PrefixCache
from models.prefix_pass import describe_prefix, lowest_trained_block, quiet_prefix
from models.prefix_store import FileStore, MemoryStore
from models.tiny_llm import as_embedder, build_tiny_llm, build_tiny_tokenizer
from models.token_rows import TokenRows
from tests.models.hub_folders import NAMES, tiny_rows, write_hub_folder

TEXTS = ["1, 2, 3, 4", "5, 6, 7", "2, 4, 8, 16, 32", "3, 9, 27"]
LABELS = torch.tensor([0, 0, 1, 1])


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SentenceTransformer]:
    """Each model as it is loaded, and only copied from."""
    cache = tmp_path_factory.mktemp("hub")
    found = {}
    with tiny_rows():
        for name in NAMES:
            write_hub_folder(cache, name)
            found[name] = load_embedder(name, cache=cache, offline=True)
    return found


def adapted(base: SentenceTransformer, name: str | None = None, **settings: Any) -> SentenceTransformer:
    """A copy with an adapter on the last block that is not the identity."""
    embedder = copy.deepcopy(base)
    targets = BACKBONES[name].lora_targets if name is not None else settings.pop("targets", None)
    experts = () if name is None or settings.get("use_dora") else BACKBONES[name].expert_parameters
    add_lora(embedder, r=2, targets=targets, expert_parameters=experts, adapt_top=1, **settings)
    torch.manual_seed(3)
    for key, parameter in embedder.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    embedder.train()
    quiet_prefix(embedder, lowest_trained_block(embedder))
    return embedder


def step(
    embedder: SentenceTransformer, parts: list[dict[str, Any]], labels: torch.Tensor, **how: Any
) -> dict[str, Any]:
    """Loss, embeddings and gradients of one batch, in training mode."""
    embedder.zero_grad()
    torch.manual_seed(11)
    embeddings = embed_parts(embedder, parts, **how)
    loss = supervised_contrastive_loss(embeddings, labels)
    loss.backward()
    grads = {key: each.grad.clone() for key, each in embedder.named_parameters() if each.grad is not None}
    return {"loss": loss.detach(), "embeddings": embeddings.detach(), **grads}


def parts_of(embedder: SentenceTransformer, texts: list[str], *, alone: bool) -> list[dict[str, Any]]:
    return [embedder.preprocess(batch) for batch in ([[text] for text in texts] if alone else [texts])]


def equal(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    assert len(found) > 2
    assert all(value.abs().max() > 0 for key, value in wanted.items() if "router" not in key)
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key


def close(found: dict[str, Any], wanted: dict[str, Any], *, within: float = 1e-4) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert (found[key] - value).abs().max() <= within * value.abs().max() + 1e-6, key


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("name", NAMES)
def test_every_model_trains_the_same(name: str, use_dora: bool, bases: dict[str, SentenceTransformer]) -> None:
    """Bit for bit where texts are passed one by one, as their states were computed; padded together within rounding."""
    embedder = adapted(bases[name], name, use_dora=use_dora)
    cache = PrefixCache(embedder, 1, MemoryStore())
    alone, padded = (parts_of(embedder, TEXTS, alone=each) for each in (True, False))
    wanted, wanted_padded = step(embedder, alone, LABELS), step(embedder, padded, LABELS)
    with cache.installed():
        equal(step(embedder, alone, LABELS), wanted)
        close(step(embedder, padded, LABELS), wanted_padded)
    assert len(cache.store) == len(TEXTS)
    equal(step(embedder, alone, LABELS), wanted)


@pytest.fixture
def llm() -> SentenceTransformer:
    return build_tiny_llm(hidden_size=16, layers=3, heads=2, intermediate_size=24, seed=2)


def count_passes(embedder: SentenceTransformer) -> list[int]:
    """How often each block has really computed: its first norm or projection ran."""
    _, stack = block_stack(transformer_of(embedder))
    counts = [0] * len(stack)
    for place, block in enumerate(stack):

        def note(*_: Any, place: int = place) -> None:
            counts[place] += 1

        block.self_attn.k_proj.register_forward_hook(note)
    return counts


def test_blocks_below_are_computed_once_a_text(llm: SentenceTransformer) -> None:
    embedder = adapted(llm, targets=["q_proj"])
    counts = count_passes(embedder)
    with PrefixCache(embedder, 2, MemoryStore()).installed():
        for _ in range(3):
            encode(embedder, [*TEXTS, TEXTS[0]])
    assert counts == [4, 4, 3]


@pytest.mark.parametrize("way", ["recompute", "checkpoint", "both"])
def test_activations_that_are_computed_again_begin_at_the_same_states(way: str, llm: SentenceTransformer) -> None:
    embedder = adapted(llm, targets=["q_proj", "down_proj"], dropout=0.2)
    parts = parts_of(embedder, TEXTS, alone=True)
    wanted = step(embedder, parts, LABELS)
    if way != "recompute":
        checkpoint_blocks(embedder)
    cache = PrefixCache(embedder, 2, MemoryStore())
    with cache.installed():
        for part in parts:
            cache.attach(part)
        equal(step(embedder, parts, LABELS, recompute=way != "checkpoint"), wanted)
        cache.fill(rows_of(embedder))
        for part in parts:
            cache.attach(part)
            assert STATES in part
        equal(step(embedder, parts, LABELS, recompute=way != "checkpoint"), wanted)


def rows_of(embedder: SentenceTransformer) -> list[Any]:
    rows = TokenRows(embedder)
    return [rows.row(text) for text in TEXTS]


def test_states_that_a_batch_brings_along_are_those_that_a_pass_looks_up(llm: SentenceTransformer) -> None:
    embedder = adapted(llm, targets=["q_proj"])
    cache = PrefixCache(embedder, 2, MemoryStore())
    rows = TokenRows(embedder)
    part = rows.padded([rows.row(text) for text in TEXTS])
    cache.attach(part)
    assert STATES not in part, "nothing is there yet, and a worker computes nothing"
    with cache.installed():
        wanted = step(embedder, [part], LABELS)
        cache.attach(part)
        assert part[STATES].shape == (*part["input_ids"].shape, 16)
        equal(step(embedder, [part], LABELS), wanted)
        assert STATES in part


def test_a_text_has_the_same_states_in_whatever_batch_it_was_met(llm: SentenceTransformer) -> None:
    embedder = adapted(llm, targets=["q_proj"])
    found = []
    for batches in ([TEXTS], [TEXTS[::-1]], [[text] for text in TEXTS], [TEXTS[:3], TEXTS[1:]]):
        store = MemoryStore()
        with PrefixCache(embedder, 2, store).installed():
            for batch in batches:
                encode(embedder, batch)
        found.append(store._rows)
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        assert all(torch.equal(other[key], value) for key, value in found[0].items())


def bert(dropout: float) -> SentenceTransformer:
    """MiniLM's architecture, smaller, with the dropout that it was trained with."""
    tokenizer = build_tiny_tokenizer(max_tokens=64)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(6)
    return as_embedder(BertModel(config), tokenizer)


def test_dropout_of_the_base_is_on_above_and_off_below() -> None:
    embedder = adapted(bert(0.3), targets=["query"])
    assert not embedder[0].model.base_model.model.embeddings.dropout.training
    parts = parts_of(embedder, TEXTS, alone=True)
    wanted = step(embedder, parts, LABELS)
    with PrefixCache(embedder, 2, MemoryStore()).installed():
        equal(step(embedder, parts, LABELS), wanted)
    still = adapted(bert(0.0), targets=["query"])
    assert not torch.equal(step(still, parts, LABELS)["loss"], wanted["loss"]), "block 2 has dropout"


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_over_few_bits(quantization: Any, tmp_path: Any) -> None:
    from models.export import save_embedder

    wide = build_tiny_llm(hidden_size=64, layers=2, heads=2, intermediate_size=64, seed=1)
    folder = save_embedder(wide, tmp_path / "wide")
    embedder = load_embedder(folder, quantization=quantization)
    add_lora(embedder, r=2, adapt_top=1, targets=["q_proj", "down_proj"])
    torch.nn.init.ones_(next(each for key, each in embedder.named_parameters() if "lora_B" in key))
    embedder.train()
    quiet_prefix(embedder, 1)
    parts = parts_of(embedder, TEXTS, alone=True)
    wanted = step(embedder, parts, LABELS)
    cache = PrefixCache(embedder, 1, FileStore(tmp_path / "prefix", describe_prefix(embedder, 1)))
    cache.prove(TEXTS)
    with cache.installed():
        assert torch.equal(step(embedder, parts, LABELS)["loss"], wanted["loss"])
    plain = load_embedder(folder)
    assert describe_prefix(plain, 1)["weights"] != describe_prefix(embedder, 1)["weights"]


def test_states_of_a_mixed_precision_are_kept_apart(llm: SentenceTransformer) -> None:
    embedder = adapted(llm, targets=["q_proj"])
    parts = parts_of(embedder, TEXTS, alone=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = step(embedder, parts, LABELS)
    cache = PrefixCache(embedder, 2, MemoryStore())
    with cache.installed():
        encode(embedder, TEXTS)
        cache.fill(rows_of(embedder), autocast=torch.bfloat16)
        assert len(cache.store) == 2 * len(TEXTS)
        for part in parts:
            cache.attach(part, autocast=torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            equal(step(embedder, parts, LABELS), wanted)


def test_a_model_whose_blocks_need_more_than_states_is_found_out(llm: SentenceTransformer) -> None:
    """Where a block reads what a lower one has left behind."""
    embedder = adapted(llm, targets=["q_proj"])
    _, stack = block_stack(transformer_of(embedder))
    bias: dict[str, torch.Tensor] = {}
    stack[0].mlp.register_forward_hook(lambda module, args, output: bias.update(bias=output.mean(dim=1, keepdim=True)))
    stack[2].mlp.register_forward_hook(lambda module, args, output: output + bias["bias"] * 50)
    cache = PrefixCache(embedder, 2, MemoryStore())
    with pytest.raises(ValueError, match=r"prefix cache: expected embeddings as without it .*; this model is trained"):
        cache.prove(["1, 2", "300, 400, 500", "7"])


def test_t5_is_found_out_whose_first_block_makes_the_position_bias_of_all() -> None:
    tokenizer = build_tiny_tokenizer(max_tokens=64)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 3, "num_heads": 2}
    torch.manual_seed(2)
    model = T5EncoderModel(T5Config(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    embedder = as_embedder(model, tokenizer)
    with pytest.raises(ValueError, match=r"prefix cache: expected embeddings as without it .*; this model is trained"):
        PrefixCache(embedder, 2, MemoryStore()).prove(TEXTS)


def test_weights_outside_the_blocks_that_are_trained_leave_nothing_to_keep(llm: SentenceTransformer) -> None:
    embedder = adapted(llm, targets=["q_proj"])
    assert lowest_trained_block(embedder) == 2
    embedder[0].model.base_model.model.embed_tokens.weight.requires_grad_(True)
    assert lowest_trained_block(embedder) == 0
    with pytest.raises(ValueError, match="prefix: expected a block from 1 to 2 of this model, got 0"):
        PrefixCache(embedder, 0, MemoryStore())


def test_a_description_tells_what_lies_below_and_nothing_above(llm: SentenceTransformer) -> None:
    about = describe_prefix(llm, 2)
    for name, changes in (
        ("layers.0.mlp.up_proj", True),
        ("layers.1.mlp.up_proj", True),
        ("layers.2.mlp.up_proj", False),
    ):
        other = copy.deepcopy(llm)
        with torch.no_grad():
            other[0].model.get_submodule(name).weight[0, 0] += 1
        assert (describe_prefix(other, 2) != about) is changes, name
    assert describe_prefix(adapted(llm, targets=["q_proj"]), 2) == about
    assert describe_prefix(llm, 1) != about
    other = copy.deepcopy(llm)
    other[0].model.config.is_causal = False
    assert describe_prefix(other, 2) != about


def test_a_copy_of_an_embedder_has_a_cache_of_its_own(llm: SentenceTransformer) -> None:
    embedder = adapted(llm, targets=["q_proj"])
    cache = PrefixCache(embedder, 2, MemoryStore())
    with cache.installed():
        wanted = encode(embedder, TEXTS)
        copied = copy.deepcopy(embedder)
        assert torch.equal(encode(copied, TEXTS), wanted)
    assert "forward" not in vars(block_stack(transformer_of(copied))[1][0])


def test_an_error_inside_a_pass_leaves_the_blocks_as_they_were(llm: SentenceTransformer) -> None:
    embedder = adapted(llm, targets=["q_proj"])
    _, stack = block_stack(transformer_of(embedder))
    with PrefixCache(embedder, 2, MemoryStore()).installed():

        def fail(*_: Any) -> None:
            raise RuntimeError("out of memory")

        failing = stack[2].register_forward_hook(fail)
        encode_one = embedder.preprocess(TEXTS[:1])
        with pytest.raises(RuntimeError, match="out of memory"):
            embedder(encode_one)
        failing.remove()
        assert not any("forward" in vars(block) for block in stack)
    assert not embedder[0]._forward_pre_hooks
    assert not stack[2]._forward_pre_hooks


def test_a_full_disk_is_told_once_and_new_texts_are_computed_whole(
    llm: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = adapted(llm, targets=["q_proj"])
    wanted = encode(embedder, TEXTS)
    store = FileStore(tmp_path / "prefix", {})
    told: list[str] = []
    counts = count_passes(embedder)
    with PrefixCache(embedder, 2, store, say=told.append).installed():
        encode(embedder, TEXTS[:2])
        keep = FileStore.put

        def full(self: FileStore, key: bytes, states: torch.Tensor) -> bool:
            self.failure = OSError(errno.ENOSPC, "No space left on device")
            return False

        monkeypatch.setattr(FileStore, "put", full)
        for _ in range(2):
            torch.testing.assert_close(encode(embedder, TEXTS), wanted, rtol=0, atol=1e-6)
        monkeypatch.setattr(FileStore, "put", keep)
        before = list(counts)
        torch.testing.assert_close(encode(embedder, TEXTS[:2]), wanted[:2], rtol=0, atol=1e-6)
    assert [after - earlier for after, earlier in zip(counts, before, strict=True)] == [0, 0, 1]
    assert told == [
        "prefix cache: no more states are kept, texts without are computed whole: [Errno 28] No space left on device"
    ]


@pytest.mark.parametrize("name", NAMES)
def test_passes_of_one_shape_as_on_a_gpu(
    name: str, bases: dict[str, SentenceTransformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PrefixCache, "_alone", lambda self: False)
    embedder = adapted(bases[name], name).eval()
    embedder.max_seq_length = 90
    longest = "7" * 100
    features = embedder.preprocess([*TEXTS, longest])
    assert features["input_ids"].shape[1] == 90
    with torch.no_grad():
        wanted = embedder(dict(features))["sentence_embedding"]
    with PrefixCache(embedder, 1, MemoryStore()).installed(), torch.no_grad():
        found = embedder(dict(features))["sentence_embedding"]
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()
