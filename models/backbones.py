"""BACKBONES: the models of the paper's Table 1 and the built-in ones, one declarative table.

A row states facts about a model; nothing here loads one. Only the standard library is imported, so that the table
can be listed by ``--help``. Where the paper's Table 1 and the model's own configuration disagree, the row follows
the model and its `reference` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType
from typing import Literal

# The linear layers inside a Llama-shaped block, by their names in memory, and those inside a BERT-shaped one.
LLAMA_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BERT_LINEAR = ("query", "key", "value", "dense")

INSTRUCT = MappingProxyType({"query": "Instruct: {task}\nQuery: ", "document": ""})


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """One embedder: where it is, how it reads a text, and what of it LoRA adapts."""

    name: str
    """Short name, the key in BACKBONES."""
    aliases: tuple[str, ...] = ()
    """Other accepted names, such as the paper's."""
    repo_id: str | None = None
    """Hub id; None for a model that exists only here."""
    builtin: str | None = None
    """Folder of the shipped weights, relative to the project."""
    from_scratch: bool = False
    """Whether the weights are drawn from a seed and all of them are trained (no LoRA)."""
    parameters_b: float
    """Parameters in billions."""
    attention: Literal["causal", "bidirectional"]
    pooling: Literal["mean", "cls", "lasttoken"]
    normalize: bool = True
    """Whether embeddings have unit length."""
    dimension: int
    """Length of an embedding."""
    max_tokens: int | None = None
    """Longest text in tokens; None where only the model's own files tell."""
    padding_side: Literal["left", "right"] = "right"
    prompts: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Prefixes by name; ``{task}`` stands for an instruction of the user's."""
    default_prompt: str | None = None
    """Name of the prompt that a bare ``encode(texts)`` uses; None for no prompt."""
    pools_prompt: bool = True
    """Whether the tokens of a prompt take part in mean pooling."""
    end_token: str | None = None
    """The token that ends every text where it is not the tokenizer's end token (eos_token)."""
    needs_eos: bool = False
    """Whether the last token has to be the tokenizer's end token, which its files do not see to."""
    lora_targets: tuple[str, ...]
    """Names of the linear layers that LoRA adapts; empty where a class of its own is needed."""
    attn_implementation: Literal["eager", "sdpa"] | None = None
    """Forced attention kernel; None for the library's choice."""
    licence: str
    gated: bool = False
    """Whether the hub asks for an agreement before the download."""
    reference: str


_ROWS = (
    Backbone(
        name="tiny-llm",
        builtin="models/pretrained/tiny-llm",
        parameters_b=0.0011,
        attention="causal",
        pooling="mean",
        dimension=128,
        max_tokens=1024,
        lora_targets=LLAMA_LINEAR,
        licence="apache-2.0",
        reference="built in; made by pretrain.py",
    ),
    Backbone(
        name="tiny-encoder",
        from_scratch=True,
        parameters_b=0.0009,
        attention="bidirectional",
        pooling="mean",
        dimension=128,
        max_tokens=1024,
        lora_targets=(),
        licence="apache-2.0",
        reference="built in; ModernBERT blocks (arXiv:2412.13663), trained from scratch",
    ),
    Backbone(
        name="all-minilm",
        aliases=("all-minilm-l6-v2",),
        repo_id="sentence-transformers/all-MiniLM-L6-v2",
        parameters_b=0.0227,
        attention="bidirectional",
        pooling="mean",
        dimension=384,
        max_tokens=256,
        lora_targets=BERT_LINEAR,
        licence="apache-2.0",
        reference="arXiv:1908.10084, arXiv:2002.10957",
    ),
    Backbone(
        name="embeddinggemma",
        aliases=("embeddinggemma-300m",),
        repo_id="google/embeddinggemma-300m",
        parameters_b=0.3,
        attention="bidirectional",
        pooling="mean",
        dimension=768,
        max_tokens=2048,
        prompts=MappingProxyType(
            {
                "clustering": "task: clustering | query: ",
                "query": "task: search result | query: ",
                "document": "title: none | text: ",
            }
        ),
        lora_targets=LLAMA_LINEAR,
        licence="gemma",
        gated=True,
        reference="arXiv:2509.20354",
    ),
    Backbone(
        name="gte-multilingual",
        aliases=("gte-multilingual-base",),
        repo_id="Alibaba-NLP/gte-multilingual-base",
        parameters_b=0.3,
        attention="bidirectional",
        pooling="cls",
        dimension=768,
        max_tokens=8192,
        lora_targets=LLAMA_LINEAR,
        licence="apache-2.0",
        reference="arXiv:2407.19669",
    ),
    Backbone(
        name="gte-large",
        aliases=("gte-large-en-v1.5",),
        repo_id="Alibaba-NLP/gte-large-en-v1.5",
        parameters_b=0.4,
        attention="bidirectional",
        pooling="cls",
        normalize=False,
        dimension=1024,
        max_tokens=8192,
        lora_targets=LLAMA_LINEAR,
        licence="apache-2.0",
        reference="arXiv:2407.19669",
    ),
    Backbone(
        name="nomic-moe",
        aliases=("nomic-embed-text-v2-moe",),
        repo_id="nomic-ai/nomic-embed-text-v2-moe",
        parameters_b=0.5,
        attention="bidirectional",
        pooling="mean",
        dimension=768,
        max_tokens=512,
        prompts=MappingProxyType(
            {"clustering": "clustering: ", "query": "search_query: ", "document": "search_document: "}
        ),
        lora_targets=(),
        licence="apache-2.0",
        reference="arXiv:2502.07972",
    ),
    Backbone(
        name="me5-large",
        aliases=("multilingual-e5-large",),
        repo_id="intfloat/multilingual-e5-large",
        parameters_b=0.6,
        attention="bidirectional",
        pooling="mean",
        dimension=1024,
        max_tokens=512,
        prompts=MappingProxyType({"query": "query: ", "document": "passage: "}),
        lora_targets=BERT_LINEAR,
        licence="mit",
        reference="arXiv:2402.05672",
    ),
    *(
        Backbone(
            name=f"qwen3-{size}",
            aliases=(f"qwen3-embedding-{size}",),
            repo_id=f"Qwen/Qwen3-Embedding-{size.upper()}",
            parameters_b=parameters_b,
            attention="causal",
            pooling="lasttoken",
            dimension=dimension,
            max_tokens=32768,
            padding_side="left",
            prompts=MappingProxyType({"query": "Instruct: {task}\nQuery:", "document": ""}),
            end_token="<|endoftext|>",
            lora_targets=LLAMA_LINEAR,
            licence="apache-2.0",
            reference="arXiv:2506.05176",
        )
        for size, parameters_b, dimension in (("0.6b", 0.6, 1024), ("4b", 4.0, 2560), ("8b", 8.0, 4096))
    ),
    *(
        Backbone(
            name=f"gte-qwen2-{size}",
            aliases=(f"gte-qwen2-{size}-instruct",),
            repo_id=f"Alibaba-NLP/gte-Qwen2-{size.upper()}-instruct",
            parameters_b=parameters_b,
            attention="bidirectional",
            pooling="lasttoken",
            dimension=dimension,
            max_tokens=32768,
            padding_side="left",
            prompts=INSTRUCT,
            needs_eos=True,
            lora_targets=LLAMA_LINEAR,
            licence="apache-2.0",
            reference="arXiv:2308.03281; the paper's Table 1 calls it causal, its config has is_causal=false",
        )
        for size, parameters_b, dimension in (("1.5b", 1.5, 1536), ("7b", 7.0, 3584))
    ),
    Backbone(
        name="gritlm",
        aliases=("gritlm-7b",),
        repo_id="GritLM/GritLM-7B",
        parameters_b=7.0,
        attention="bidirectional",
        pooling="mean",
        pools_prompt=False,
        dimension=4096,
        prompts=MappingProxyType({"query": "<|user|>\n{task}\n<|embed|>\n", "document": "<|embed|>\n"}),
        lora_targets=LLAMA_LINEAR,
        licence="apache-2.0",
        reference="arXiv:2402.09906; the paper's Table 1 says last token, causal: it is mean-pooled, bidirectional",
    ),
    Backbone(
        name="e5-mistral",
        aliases=("e5-mistral-7b", "e5-mistral-7b-instruct"),
        repo_id="intfloat/e5-mistral-7b-instruct",
        parameters_b=7.0,
        attention="causal",
        pooling="lasttoken",
        dimension=4096,
        max_tokens=4096,
        prompts=INSTRUCT,
        needs_eos=True,
        lora_targets=LLAMA_LINEAR,
        licence="mit",
        reference="arXiv:2401.00368",
    ),
    Backbone(
        name="nemotron-8b",
        aliases=("llama-embed-nemotron-8b",),
        repo_id="nvidia/llama-embed-nemotron-8b",
        parameters_b=8.0,
        attention="bidirectional",
        pooling="mean",
        dimension=4096,
        max_tokens=32768,
        padding_side="left",
        prompts=INSTRUCT,
        lora_targets=LLAMA_LINEAR,
        licence="nvidia customized-nscl-v1 (non-commercial) and llama 3.1",
        reference="arXiv:2511.07025",
    ),
    Backbone(
        name="bge-gemma2",
        aliases=("bge-multilingual-gemma2",),
        repo_id="BAAI/bge-multilingual-gemma2",
        parameters_b=9.0,
        attention="causal",
        pooling="lasttoken",
        dimension=3584,
        max_tokens=8192,
        padding_side="left",
        prompts=MappingProxyType({"query": "<instruct>{task}\n<query>", "document": ""}),
        needs_eos=True,
        lora_targets=LLAMA_LINEAR,
        attn_implementation="eager",
        licence="gemma",
        reference="arXiv:2402.03216; the paper's Table 1 adds a linear projection, the model has none",
    ),
)

BACKBONES: Mapping[str, Backbone] = MappingProxyType({row.name: row for row in _ROWS})
"""The 14 models of the paper's Table 1, one small real encoder, and the two built-in models, by short name."""


def builtin_names() -> tuple[str, ...]:
    """Names of the backbones that need neither a network nor a download."""
    return tuple(row.name for row in _ROWS if row.builtin is not None or row.from_scratch)


def lookup_backbone(name: str) -> Backbone | None:
    """The row whose name, alias or hub id is `name` (case does not matter), or None."""
    wanted = name.strip().lower()
    for row in _ROWS:
        if wanted in (row.name, *row.aliases) or (row.repo_id is not None and wanted == row.repo_id.lower()):
            return row
    return None


def find_backbone(name: str) -> Backbone:
    """The row of BACKBONES that `name` means: its short name, the paper's long one, or its hub id.

    Raises:
        ValueError: when there is none; the message lists the closest names and the built-in ones.

    Example:
        >>> find_backbone("intfloat/e5-mistral-7b-instruct").name
        'e5-mistral'
    """
    row = lookup_backbone(name)
    if row is not None:
        return row
    names = [known for each in _ROWS for known in (each.name, *each.aliases)]
    close = get_close_matches(name.strip().lower(), names, n=3, cutoff=0.4)
    closest = f"did you mean {' or '.join(repr(each) for each in close)}? " if close else ""
    raise ValueError(
        f"backbone: expected a name of BACKBONES, a local folder or a hub id (owner/name), got {name!r}; "
        f"{closest}built in, no download: {', '.join(builtin_names())}"
    )
