from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, Qwen3ForCausalLM

from models.export import save_embedder
from models.tiny_llm import build_tiny_llm, build_tiny_tokenizer, lm_logits

TOKENIZER = build_tiny_tokenizer()
SMALL = {"hidden_size": 16, "layers": 2, "heads": 2, "intermediate_size": 24, "max_tokens": 64}


def pieces_of(text: str) -> list[str]:
    return TOKENIZER.convert_ids_to_tokens(TOKENIZER(text)["input_ids"])


def test_one_token_a_digit_and_one_for_the_separator() -> None:
    assert pieces_of("2024, 7, -13") == ["<s>", *"2024", ",Ġ", "7", ",Ġ", "-", "1", "3"]
    assert pieces_of("1,2 3") == ["<s>", "1", ",", "2", "Ġ", "3"]
    assert len(TOKENIZER) == 259 + 1


@given(st.lists(st.integers(-(10**12), 10**12), min_size=1, max_size=12))
def test_a_sequence_has_as_many_tokens_as_digits_signs_and_separators(terms: list[int]) -> None:
    count = 1 + sum(len(str(term)) for term in terms) + len(terms) - 1
    assert len(TOKENIZER(", ".join(str(term) for term in terms))["input_ids"]) == count


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
@settings(max_examples=200)
def test_any_text_comes_back_and_no_byte_is_unknown(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.decode(ids[1:]) == text
    assert len(ids) == 1 + len(text.encode()) - text.count(", ")
    assert not set(ids[1:]) & set(TOKENIZER.all_special_ids)


def test_text_that_spells_a_special_token_is_plain_bytes() -> None:
    assert pieces_of("<s></s><pad>") == ["<s>", *"<s></s><pad>"]


def test_padding_is_on_the_right_and_the_rules_survive_the_disk(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    texts = ["1, 2", "<s> 300, 4"]
    for tokenizer in (TOKENIZER, again):
        batch = tokenizer(texts, padding=True)
        assert batch["attention_mask"][0] == [1, 1, 1, 1] + [0] * (len(batch["input_ids"][1]) - 4)
        assert set(batch["input_ids"][0][4:]) == {tokenizer.pad_token_id}
    assert again(texts)["input_ids"] == TOKENIZER(texts)["input_ids"]
    assert again.model_max_length == 1024


def test_the_default_size_is_a_few_million_parameters() -> None:
    embedder = build_tiny_llm()
    assert sum(each.numel() for each in embedder.parameters()) == 1_099_968
    assert embedder.get_embedding_dimension() == 128
    assert embedder.max_seq_length == 1024


def test_weights_are_a_function_of_the_seed_and_the_global_random_state_is_kept() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, same, other = (build_tiny_llm(**SMALL, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_embedding_is_the_normalised_mean_of_all_states_begin_token_included() -> None:
    embedder = build_tiny_llm(**SMALL)
    texts = ["1, 2, 3", "44, 5"]
    embeddings = embedder.encode(texts)
    for text, embedding in zip(texts, embeddings, strict=True):
        ids = torch.tensor([TOKENIZER(text)["input_ids"]])
        with torch.no_grad():
            mean = embedder[0].model(input_ids=ids).last_hidden_state[0].mean(dim=0)
        np.testing.assert_allclose(embedding, (mean / mean.norm()).numpy(), atol=1e-6)


def test_it_is_causal() -> None:
    model = build_tiny_llm(**SMALL)[0].model
    ids = torch.tensor([TOKENIZER("1, 2, 3")["input_ids"]])
    changed = ids.clone()
    changed[0, -1] = TOKENIZER.convert_tokens_to_ids("9")
    with torch.no_grad():
        before, after = model(input_ids=ids).last_hidden_state, model(input_ids=changed).last_hidden_state
    assert torch.equal(before[0, :-1], after[0, :-1])
    assert not torch.allclose(before[0, -1], after[0, -1])


def test_lm_logits_are_those_of_transformers_language_model() -> None:
    base = build_tiny_llm(**SMALL)[0].model
    reference = Qwen3ForCausalLM(base.config)
    reference.model.load_state_dict(base.state_dict())
    reference.tie_weights()
    ids = torch.tensor([TOKENIZER("1, 2, 3")["input_ids"]])
    with torch.no_grad():
        ours = lm_logits(base(input_ids=ids).last_hidden_state, base.get_input_embeddings().weight)
        torch.testing.assert_close(ours, reference.eval()(input_ids=ids).logits)


def test_a_saved_folder_loads_with_plain_sentence_transformers(tmp_path: Path) -> None:
    embedder = build_tiny_llm(**SMALL)
    folder = save_embedder(embedder, tmp_path / "model")
    again = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    texts = ["1, 2, 3", "<s>", ""]
    np.testing.assert_array_equal(again.encode(texts), embedder.encode(texts))
    assert str(tmp_path) not in (folder / "config.json").read_text()
    assert "/tmp" not in "".join(file.read_text() for file in folder.rglob("*.json"))


def test_heads_must_divide_the_hidden_size() -> None:
    with pytest.raises(ValueError, match="hidden_size: expected a multiple of heads = 3, got 16"):
        build_tiny_llm(hidden_size=16, heads=3)
