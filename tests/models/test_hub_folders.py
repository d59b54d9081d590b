"""Every backbone from a folder laid out like its repository, against its card's recipe in plain transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from models.attention import reads_ahead
from models.backbones import BACKBONES
from models.embedder import encode, load_embedder
from tests.models.hub_folders import NAMES, write_hub_folder
from tests.models.nomic_oracle import states_of

TEXTS = ["1, 2, 3", "2, 4, 8, 16, 32, 64", "7"]
TASK = "group the numbers"
# Class (none for nomic's formulas), first and last token by the card, and whether a decoder's mask has to be removed.
RECIPES = {
    "qwen3": ("Qwen3Model", [], ["<|endoftext|>"], False),
    "e5-mistral": ("MistralModel", ["<s>"], ["</s>"], False),
    "gte-qwen2": ("Qwen2Model", [], ["<|endoftext|>"], True),
    "gritlm": ("MistralModel", ["<s>"], [], True),
    "nemotron": ("LlamaModel", ["<s>"], [], True),
    "bge-gemma2": ("Gemma2Model", ["<bos>"], ["<eos>"], False),
    "embeddinggemma": ("Gemma3TextModel", ["<bos>"], ["<eos>"], False),
    "me5": ("XLMRobertaModel", ["<s>"], ["</s>"], False),
    "gte-multilingual": ("GteModel", ["<s>"], ["</s>"], False),
    "gte-large": ("GteModel", ["[CLS]"], ["[SEP]"], False),
    "nomic-moe": ("", ["<s>"], ["</s>"], False),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    for name in NAMES:
        write_hub_folder(folder, name)
    return folder


def snapshot(cache: Path, name: str) -> Path:
    repository = cache / f"models--{BACKBONES[name].repo_id.replace('/', '--')}"
    return next((repository / "snapshots").iterdir())


def by_the_card(folder: Path, name: str, prompt: str, texts: list[str]) -> Tensor:
    """One text at a time, no padding, nothing of this package."""
    kind, begin, end, remove_mask = next(recipe for each, recipe in RECIPES.items() if name.startswith(each))
    model = None if kind == "" else oracle_model(folder, name, kind)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    first, last = ([tokenizer.token_to_id(token) for token in tokens] for tokens in (begin, end))
    rows = []
    for text in texts:
        ids = [*first, *tokenizer.encode(prompt + text, add_special_tokens=False).ids, *last]
        mask = torch.zeros(1, 1, len(ids), len(ids)) if remove_mask else torch.ones(1, len(ids))
        if model is None:
            states = states_of(load_file(folder / "model.safetensors"), ids).float()
        else:
            with torch.no_grad():
                states = model(input_ids=torch.tensor([ids]), attention_mask=mask).last_hidden_state[0]
        if name == "gritlm":
            states = states[len(first) + len(tokenizer.encode(prompt, add_special_tokens=False).ids) :]
        row = {"mean": states.mean(0), "cls": states[0], "lasttoken": states[-1]}[pooling_of(name)]
        for layer in sorted(folder.glob("*_Dense")):
            row = load_file(layer / "model.safetensors")["linear.weight"] @ row
        rows.append(row if name == "gte-large" else row / row.norm())
    return torch.stack(rows)


def pooling_of(name: str) -> str:
    if name.startswith(("qwen3", "e5-mistral", "gte-qwen2", "bge-gemma2")):
        return "lasttoken"
    return "cls" if name.startswith("gte-") else "mean"


def oracle_model(folder: Path, name: str, kind: str) -> torch.nn.Module:
    model_class = getattr(transformers, kind)
    settings = {"local_files_only": True, "attn_implementation": "eager"}
    if kind != "GteModel":
        if name == "nemotron-8b":
            keys = transformers.PreTrainedConfig.get_config_dict(folder)[0]
            config = transformers.LlamaConfig(
                **{key: keys[key] for key in keys if key not in ("model_type", "auto_map")}
            )
            return model_class.from_pretrained(folder, config=config, **settings).eval()
        return model_class.from_pretrained(folder, **settings).eval()
    keys = transformers.PreTrainedConfig.get_config_dict(folder)[0]
    factor, theta = keys["rope_scaling"]["factor"], keys["rope_theta"]
    names = ("vocab_size", "type_vocab_size", "pad_token_id", "hidden_size", "intermediate_size")
    names += ("num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    config = transformers.GteConfig(
        **{key: keys[key] for key in names}, rope_parameters={"rope_type": "default", "rope_theta": theta}
    )
    model = model_class.from_pretrained(folder, config=config, **settings).eval()
    # NTK scaling as GTE's own code computes it: a larger base, then every frequency divided.
    width = keys["hidden_size"] // keys["num_attention_heads"]
    frequency = 1 / (theta * factor) ** (torch.arange(0, width, 2) / width) / factor ** (2 / width)
    model.rotary_emb.inv_freq = frequency
    return model


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_are_the_cards(name: str, cache: Path) -> None:
    row = BACKBONES[name]
    prompt = row.prompts.get("query", "").format(task=TASK)
    embedder = load_embedder(name, cache=cache, offline=True)
    expected = by_the_card(snapshot(cache, name), name, prompt, TEXTS)
    torch.testing.assert_close(encode(embedder, TEXTS, prompt=prompt), expected, rtol=0, atol=1e-6)
    alone = torch.cat([encode(embedder, [text], prompt=prompt) for text in TEXTS])
    torch.testing.assert_close(alone, expected, rtol=0, atol=1e-6)
    assert reads_ahead(embedder) == (row.attention == "bidirectional")
    assert embedder.tokenizer.padding_side == row.padding_side


def test_the_fixed_prompts_of_a_card_are_there_without_sentence_transformers_files(cache: Path) -> None:
    embedder = load_embedder("gritlm", cache=cache, offline=True)
    assert embedder.prompts["document"] == "<|embed|>\n"
    assert not embedder[1].include_prompt
    assert load_embedder("me5-large", cache=cache, offline=True).prompts["query"] == "a query: "
