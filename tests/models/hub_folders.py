"""Tiny random models laid out like the hub's repositories, in a hub cache: one for each row, two layers of width 16.

The files say what those of the repository say: model types, keys of older versions, code of the model's own that is
named and never there, tokenizer settings that transformers 5 does not act on, and modules.json or its absence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers, processors
from transformers import (
    BertTokenizer,
    GemmaTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    Qwen2Tokenizer,
    XLMRobertaTokenizer,
)

from models import backbones
from models.backbones import BACKBONES
from models.tiny_llm import build_tiny_tokenizer
from tests.models import nomic_oracle

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CHARACTERS = ["▁", "\n", *"<>|:.,()-0123456789abcdefghijklmnopqrstuvwxyzIQ"]
NAMES = (
    *("qwen3-0.6b", "qwen3-4b", "qwen3-8b", "e5-mistral", "gte-qwen2-1.5b", "gte-qwen2-7b", "gritlm", "nemotron-8b"),
    *("bge-gemma2", "embeddinggemma", "me5-large", "gte-multilingual", "gte-large", "nomic-moe"),
)
"""Every model of the paper's Table 1."""


@contextmanager
def tiny_rows(dimension: int = 16) -> Iterator[None]:
    """Inside the block the rows of the hub's models say the length of these folders' embeddings, and their commit.

    A test whose module imports from here has it from `tests/conftest.py`.
    """
    rows = tuple(
        replace(row, dimension=dimension, revision=COMMIT) if row.name in NAMES else row for row in backbones._ROWS
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, "_ROWS", rows)
        patch.setattr(backbones, "BACKBONES", MappingProxyType({row.name: row for row in rows}))
        yield


def write_hub_folder(cache: Path, name: str, *, width: int = 16) -> Path:
    """The snapshot of the row's repository, in a hub cache that is read without a network; 4 bits need width 64."""
    row = BACKBONES[name]
    assert row.repo_id is not None
    repository = cache / f"models--{row.repo_id.replace('/', '--')}"
    folder = repository / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    family = next(each for each in _FAMILIES if name.startswith(each))
    _FAMILIES[family](folder, name, width)
    if family != "gritlm":
        width = 16 if family == "nomic" else width
        _write_modules(folder, row.pooling, width=width, dense=family == "embeddinggemma", normalize=row.normalize)
    return folder


def edit_json(file: Path, drop: tuple[str, ...] = (), **entries: Any) -> None:
    """Change entries of a JSON file, and take some away."""
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({key: value for key, value in {**content, **entries}.items() if key not in drop}))


def _qwen3(folder: Path, name: str, width: int) -> None:
    tokenizer = _qwen_tokenizer(eos_token="<|im_end|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", pair="$A $B <|endoftext|>", special_tokens=[("<|endoftext|>", 256)]
    )
    _save(folder, "Qwen3", tokenizer, **_decoder(width), head_dim=width // 2, eos_token_id=256)
    edit_json(folder / "tokenizer_config.json", padding_side="left", tokenizer_class="Qwen2Tokenizer")


def _gte_qwen2(folder: Path, name: str, width: int) -> None:
    _save(folder, "Qwen2", _qwen_tokenizer(eos_token="<|endoftext|>"), **_decoder(width))
    code = {"AutoModel": "modeling_qwen.Qwen2Model", "AutoModelForCausalLM": "modeling_qwen.Qwen2ForCausalLM"}
    edit_json(folder / "config.json", is_causal=False, auto_map=code)
    fast = ["tokenization_qwen.Qwen2Tokenizer", "tokenization_qwen.Qwen2TokenizerFast"]
    edit_json(
        folder / "tokenizer_config.json",
        add_eos_token=True,
        auto_map={"AutoTokenizer": fast},
        tokenizer_class="Qwen2Tokenizer",
    )


def _e5_mistral(folder: Path, name: str, width: int) -> None:
    _save(folder, "Mistral", _llama_tokenizer(), **_decoder(width), sliding_window=80)
    edit_json(folder / "tokenizer_config.json", add_bos_token=True, add_eos_token=True)


def _gritlm(folder: Path, name: str, width: int) -> None:
    """A MistralForCausalLM: names with a prefix, and a head that no embedding reads."""
    _save(folder, "Mistral", _llama_tokenizer(), head=True, **_decoder(width), sliding_window=None)
    code = {"AutoModelForCausalLM": "modeling_gritlm7b.MistralForCausalLM"}
    edit_json(folder / "config.json", auto_map=code, architectures=["MistralForCausalLM"])


def _nemotron(folder: Path, name: str, width: int) -> None:
    tokenizer = build_tiny_tokenizer(max_tokens=96)
    tokenizer.padding_side = "left"
    _save(folder, "Llama", tokenizer, **_decoder(width))
    code = {
        "AutoConfig": "llama_bidirectional_model.LlamaBidirectionalConfig",
        "AutoModel": "llama_bidirectional_model.LlamaBidirectionalModel",
    }
    edit_json(
        folder / "config.json",
        architectures=["LlamaBidirectionalModel"],
        model_type="llama_bidirec",
        auto_map=code,
        pooling="avg",
        temperature=0.02,
    )


def _bge_gemma2(folder: Path, name: str, width: int) -> None:
    tokenizer = _gemma_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 2)]
    )
    _save(
        folder, "Gemma2", tokenizer, **_decoder(width), head_dim=width // 4, sliding_window=80, query_pre_attn_scalar=4
    )
    edit_json(folder / "tokenizer_config.json", add_bos_token=True, add_eos_token=True, padding_side="left")


def _embeddinggemma(folder: Path, name: str, width: int) -> None:
    tokenizer = _gemma_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A $B <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    settings = {"head_dim": width // 4, "sliding_window": 80, "query_pre_attn_scalar": 4}
    _save(folder, "Gemma3Text", tokenizer, **_decoder(width), **settings, use_bidirectional_attention=True)


def _me5(folder: Path, name: str, width: int) -> None:
    _save(folder, "XLMRoberta", _xlmr_tokenizer(), **_sizes(width), max_position_embeddings=98, pad_token_id=1)


def _gte(folder: Path, name: str, width: int) -> None:
    multilingual = name == "gte-multilingual"
    tokenizer = _xlmr_tokenizer() if multilingual else _bert_tokenizer()
    sizes = {**_sizes(width), "num_attention_heads": 2, "max_position_embeddings": 96}
    types, pad = (1, 1) if multilingual else (2, 0)
    _save(folder, "Gte", tokenizer, **sizes, type_vocab_size=types, pad_token_id=pad)
    if multilingual:
        file = folder / "model.safetensors"
        state = {f"new.{key}": value for key, value in load_file(file).items()}
        save_file({**state, "classifier.weight": torch.ones(1, width)}, file, metadata={"format": "pt"})
    edit_json(
        folder / "config.json",
        drop=("rope_parameters",),
        architectures=["NewModel"],
        model_type="new",
        auto_map={
            "AutoConfig": "Alibaba-NLP/new-impl--configuration.NewConfig",
            "AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel",
        },
        layer_norm_type="layer_norm",
        logn_attention_clip1=False,
        logn_attention_scale=False,
        pack_qkv=True,
        position_embedding_type="rope",
        rope_scaling={"factor": 8.0 if multilingual else 2.0, "type": "ntk"},
        rope_theta=20000 if multilingual else 160000,
        unpad_inputs=False,
        use_memory_efficient_attention=False,
    )


def _nomic(folder: Path, name: str, width: int) -> None:
    tokenizer = _xlmr_tokenizer()
    nomic_oracle.write_folder(folder)
    tokenizer.save_pretrained(folder)


_FAMILIES = {
    "qwen3": _qwen3,
    "e5-mistral": _e5_mistral,
    "gte-qwen2": _gte_qwen2,
    "gritlm": _gritlm,
    "nemotron": _nemotron,
    "bge-gemma2": _bge_gemma2,
    "embeddinggemma": _embeddinggemma,
    "me5": _me5,
    "gte": _gte,
    "nomic": _nomic,
}


def _sizes(width: int) -> dict[str, int]:
    inner = width * 3 // 2 if width < 64 else width * 2
    return {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": 2, "num_attention_heads": 4}


def _decoder(width: int) -> dict[str, int]:
    return {**_sizes(width), "num_key_value_heads": 2, "max_position_embeddings": 96}


def _save(
    folder: Path, family: str, tokenizer: PreTrainedTokenizerBase, *, head: bool = False, **settings: Any
) -> None:
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = getattr(transformers, f"{family}Config")(**{"vocab_size": len(tokenizer), **ids, **settings})
    model_class = f"{family}ForCausalLM" if head else f"{family}Model"
    torch.manual_seed(5)
    model = getattr(transformers, model_class)(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _qwen_tokenizer(*, eos_token: str) -> PreTrainedTokenizerBase:
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return Qwen2Tokenizer(
        vocab=vocabulary, merges=[], unk_token="<|endoftext|>", eos_token=eos_token, pad_token="<|endoftext|>"
    )


def _llama_tokenizer() -> PreTrainedTokenizerBase:
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *CHARACTERS])}
    return LlamaTokenizer(
        vocab=vocabulary,
        merges=[],
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        add_bos_token=True,
    )


def _gemma_tokenizer() -> PreTrainedTokenizerBase:
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", *CHARACTERS])}
    return GemmaTokenizer(vocab=vocabulary, merges=[])


def _xlmr_tokenizer() -> PreTrainedTokenizerBase:
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *CHARACTERS, "<mask>"]
    return XLMRobertaTokenizer(vocab=[(token, 0.0 if token[0] == "<" else -1.0) for token in tokens])


def _bert_tokenizer() -> PreTrainedTokenizerBase:
    letters = [each for each in CHARACTERS if each not in ("▁", "\n")]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{each}" for each in letters)]
    return BertTokenizer(vocab={token: index for index, token in enumerate(tokens)})


def _write_modules(folder: Path, pooling: str, *, width: int, dense: bool, normalize: bool) -> None:
    """modules.json and its folders as sentence-transformers 2 to 5 wrote them."""
    kinds = ["Transformer", "Pooling", *(["Dense", "Dense"] if dense else []), *(["Normalize"] if normalize else [])]
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": f"{index}_{kind}" if index else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    edit_json(folder / "sentence_bert_config.json", max_seq_length=96, do_lower_case=False)
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    chosen = {"cls": "cls_token", "mean": "mean_tokens", "lasttoken": "lasttoken"}[pooling]
    (folder / "1_Pooling").mkdir()
    flags = {f"pooling_mode_{mode}": mode == chosen for mode in modes}
    edit_json(folder / "1_Pooling" / "config.json", word_embedding_dimension=width, include_prompt=True, **flags)
    sizes = [(width, 32), (32, width)] if dense else []
    for index, (before, after) in enumerate(sizes, start=2):
        layer = folder / f"{index}_Dense"
        layer.mkdir()
        activation = "torch.nn.modules.linear.Identity"
        edit_json(
            layer / "config.json", in_features=before, out_features=after, bias=False, activation_function=activation
        )
        weight = torch.randn(after, before, generator=torch.Generator().manual_seed(index))
        save_file({"linear.weight": weight}, layer / "model.safetensors", metadata={"format": "pt"})
    prompts = {"query": "a query: ", "document": ""}
    edit_json(folder / "config_sentence_transformers.json", prompts=prompts, default_prompt_name=None)
