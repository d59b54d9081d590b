"""Backbone: what is said of one embedder in BACKBONES.

Only the standard library is imported, so that the table can be listed by ``--help``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """One embedder: where it is, how it reads a text, and what of it LoRA adapts."""

    name: str
    """Short name, the key in BACKBONES."""
    aliases: tuple[str, ...] = ()
    """Other accepted names, such as the paper's."""
    repo_id: str | None = None
    """Hub id; None for a model that exists only here."""
    revision: str | None = None
    """Commit of the hub repository that this row describes and that is fetched unless another is asked for."""
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
    """Names of the linear layers that LoRA adapts; empty where all weights are trained."""
    expert_parameters: tuple[str, ...] = ()
    """Names of the stacked expert weights that LoRA adapts too (PEFT's ``target_parameters``), inside a block."""
    attn_implementation: Literal["eager", "sdpa"] | None = None
    """Forced attention kernel; None for the library's choice."""
    transformers: str | None = None
    """First version of transformers that has the model's class; None where the project's own floor will do."""
    licence: str
    """As the model's card names it."""
    licence_terms: str | None = None
    """What the licence restricts, in a few words; None for a permissive one."""
    gated: bool = False
    """Whether the hub asks for an agreement before the download."""
    reference: str
