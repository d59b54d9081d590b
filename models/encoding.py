"""encode: texts to embeddings with the embedder's own recipe, and the lengths that it can read.

Dimension names: n texts, d length of an embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from sentence_transformers import SentenceTransformer
from torch import Tensor


def count_tokens(embedder: SentenceTransformer, texts: Sequence[str], *, prompt: str | None = None) -> list[int]:
    """Tokens of each text as the model would read it, special tokens and prompt included, nothing cut.

    Args:
        embedder: its tokenizer counts.
        texts: any number of texts.
        prompt: what is put before each text; None for the embedder's default prompt.

    Example:
        >>> from models import load_embedder
        >>> count_tokens(load_embedder("tiny-encoder"), ["1, 2, 3", "10, 20, 30"])
        [6, 9]
    """
    if not texts:
        return []
    if prompt is None:
        prompt = embedder.prompts.get(embedder.default_prompt_name or "") or ""
    ids = embedder.tokenizer([prompt + text for text in texts], truncation=False, verbose=False)["input_ids"]
    return [len(each) for each in ids]


def check_lengths(
    embedder: SentenceTransformer, texts: Sequence[str], *, source: str = "texts", prompt: str | None = None
) -> None:
    """Refuse texts that the model would silently cut.

    Args:
        embedder: its tokenizer counts (special tokens and prompt included), its ``max_seq_length`` is the limit.
        texts: what will be encoded.
        source: where they come from, for the message: a file or a suite.
        prompt: what is put before each text; None for the embedder's default prompt.

    Raises:
        ValueError: names the longest text by its position from 0, its tokens and the limit.
    """
    limit = embedder.max_seq_length
    if limit is None or not texts:
        return
    lengths = count_tokens(embedder, texts, prompt=prompt)
    longest = max(range(len(texts)), key=lengths.__getitem__)
    if lengths[longest] > limit:
        raise ValueError(
            f"{source}: expected texts of at most {limit} tokens (what the model reads), got {lengths[longest]} in "
            f"text {longest} ({texts[longest][:40]!r}...); shorten it or choose a model that reads more"
        )


def encode(
    embedder: SentenceTransformer, texts: Sequence[str], *, batch_size: int = 32, prompt: str | None = None
) -> Float[Tensor, "n d"]:
    """Embed texts with the embedder's own ``encode``: float32 on the CPU, in the order given, without a gradient.

    Args:
        embedder: left in the mode it was in (dropout is off meanwhile).
        texts: each within the model's length; see `check_lengths`.
        batch_size: texts a forward pass.
        prompt: put before each text; None for the embedder's default prompt, ``""`` for none.

    Raises:
        ValueError: a text longer than the model reads.

    Example:
        >>> from models import load_embedder
        >>> encode(load_embedder("tiny-encoder"), ["1, 2, 3", "2, 4, 6"]).shape
        torch.Size([2, 128])
    """
    check_lengths(embedder, texts, prompt=prompt)
    if not texts:
        return torch.empty(0, embedder.get_embedding_dimension() or 0)
    with modes_kept(embedder):
        embeddings = embedder.encode(
            list(texts), batch_size=batch_size, prompt=prompt, convert_to_tensor=True, show_progress_bar=False
        )
    return embeddings.detach().float().cpu()


@contextmanager
def modes_kept(module: torch.nn.Module) -> Iterator[None]:
    """Put every submodule back into training or evaluation mode as it was before the block."""
    before = [(each, each.training) for each in module.modules()]
    try:
        yield
    finally:
        for each, training in before:
            each.training = training
