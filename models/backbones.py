"""BACKBONES: the models of the paper's Table 1 and the built-in ones, one declarative table.

A row states facts about a model; nothing here loads one. Only the standard library is imported, so that the table
can be listed by ``--help``. Where the paper's Table 1 and the model's own configuration disagree, the row follows
the model and its `reference` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType

from models.backbone import Backbone

__all__ = ["BACKBONES", "Backbone", "builtin_names", "find_backbone", "lookup_backbone"]

# The linear layers inside a Llama-shaped block, by their names in memory, and those inside a BERT-shaped one.
LLAMA_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BERT_LINEAR = ("query", "key", "value", "dense")

INSTRUCT = MappingProxyType({"query": "Instruct: {task}\nQuery: ", "document": ""})


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
        revision="8b3219a92973c328a8e22fadcfa821b5dc75636a",
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
        revision="64614b0b8b64f0c6c1e52b07e4e9a4e8fe4d2da2",
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
        licence_terms="the Gemma terms of use and its prohibited uses bind every derived model",
        gated=True,
        reference="arXiv:2509.20354",
    ),
    Backbone(
        name="gte-multilingual",
        aliases=("gte-multilingual-base",),
        repo_id="Alibaba-NLP/gte-multilingual-base",
        revision="ca1791e0bcc104f6db161f27de1340241b13c5a4",
        parameters_b=0.3,
        attention="bidirectional",
        pooling="cls",
        dimension=768,
        max_tokens=8192,
        lora_targets=LLAMA_LINEAR,
        transformers="5.18",
        licence="apache-2.0",
        reference="arXiv:2407.19669",
    ),
    Backbone(
        name="gte-large",
        aliases=("gte-large-en-v1.5",),
        repo_id="Alibaba-NLP/gte-large-en-v1.5",
        revision="104333d6af6f97649377c2afbde10a7704870c7b",
        parameters_b=0.4,
        attention="bidirectional",
        pooling="cls",
        normalize=False,
        dimension=1024,
        max_tokens=8192,
        lora_targets=LLAMA_LINEAR,
        transformers="5.18",
        licence="apache-2.0",
        reference="arXiv:2407.19669",
    ),
    Backbone(
        name="nomic-moe",
        aliases=("nomic-embed-text-v2-moe",),
        repo_id="nomic-ai/nomic-embed-text-v2-moe",
        revision="1066b6599d099fbb93dfcb64f9c37a7c9e503e85",
        parameters_b=0.5,
        attention="bidirectional",
        pooling="mean",
        dimension=768,
        max_tokens=512,
        prompts=MappingProxyType(
            {"clustering": "clustering: ", "query": "search_query: ", "document": "search_document: "}
        ),
        lora_targets=("Wqkv", "out_proj", "fc1", "fc2"),
        expert_parameters=("mlp.experts.mlp.w1", "mlp.experts.mlp.w2"),
        licence="apache-2.0",
        reference="arXiv:2502.07972",
    ),
    Backbone(
        name="me5-large",
        aliases=("multilingual-e5-large",),
        repo_id="intfloat/multilingual-e5-large",
        revision="ab10c1a7f42e74530fe7ae5be82e6d4f11a719eb",
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
            revision=revision,
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
        for size, parameters_b, dimension, revision in (
            ("0.6b", 0.6, 1024, "b22da495047858cce924d27d76261e96be6febc0"),
            ("4b", 4.0, 2560, "636cd9bf47d976946cdbb2b0c3ca0cb2f8eea5ff"),
            ("8b", 8.0, 4096, "4e423935c619ae4df87b646a3ce949610c66241c"),
        )
    ),
    *(
        Backbone(
            name=f"gte-qwen2-{size}",
            aliases=(f"gte-qwen2-{size}-instruct",),
            repo_id=f"Alibaba-NLP/gte-Qwen2-{size.upper()}-instruct",
            revision=revision,
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
        for size, parameters_b, dimension, revision in (
            ("1.5b", 1.5, 1536, "c6c1b92f4a3e1b92b326ad29dd3c8433457df8dd"),
            ("7b", 7.0, 3584, "e26182b2122f4435e8b3ebecbf363990f409b45b"),
        )
    ),
    Backbone(
        name="gritlm",
        aliases=("gritlm-7b",),
        repo_id="GritLM/GritLM-7B",
        revision="13f00a0e36500c80ce12870ea513846a066004af",
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
        revision="07163b72af1488142a360786df853f237b1a3ca1",
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
        revision="84a375593d27d3528beb4e104822515659e093b4",
        parameters_b=8.0,
        attention="bidirectional",
        pooling="mean",
        dimension=4096,
        max_tokens=32768,
        padding_side="left",
        prompts=INSTRUCT,
        lora_targets=LLAMA_LINEAR,
        licence="nvidia customized-nscl-v1 and llama 3.1",
        licence_terms="non-commercial: research and evaluation only; the Llama 3.1 community licence too",
        reference="arXiv:2511.07025",
    ),
    Backbone(
        name="bge-gemma2",
        aliases=("bge-multilingual-gemma2",),
        repo_id="BAAI/bge-multilingual-gemma2",
        revision="992e13d8984fde2c31ef8a3cb2c038aeec513b8a",
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
        licence_terms="the Gemma terms of use and its prohibited uses bind every derived model",
        reference="arXiv:2402.03216; the paper's Table 1 adds a linear projection, the model has none",
    ),
)

BACKBONES: Mapping[str, Backbone] = MappingProxyType({row.name: row for row in _ROWS})
"""The 14 models of the paper's Table 1, one small real encoder, and the two built-in models, by short name."""


def builtin_names() -> tuple[str, ...]:
    """Names of the backbones that need neither a network nor a download."""
    return tuple(row.name for row in _ROWS if row.builtin is not None or row.from_scratch)


def lookup_backbone(name: str) -> Backbone | None:
    """The row whose name, alias or hub id is `name` (case and ``@REVISION`` do not matter), or None."""
    wanted = name.partition("@")[0].strip().lower()
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
