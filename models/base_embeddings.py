"""What the base model says of texts while an adapter lies on it.

Dimension names: n texts, d length of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from sentence_transformers import SentenceTransformer
from torch import Tensor

from models.adapter import find_adapter
from models.encoding import encode


def base_embeddings(
    embedder: SentenceTransformer, texts: Sequence[str], *, prompt: str | None = None
) -> Float[Tensor, "n d"]:
    """Embed texts with the adapter switched off: float32 on the CPU, no gradient. The adapter is on again afterwards.

    Args:
        embedder: with an adapter; how far it has been trained does not matter. Dense modules behind it are taken as they are.
        texts: each within the model's length.
        prompt: put before each text; None for the embedder's default prompt.

    Raises:
        ValueError: no adapter, so that there is no base beside the trained weights; a text longer than the model reads.

    Example:
        >>> from models import add_lora, load_embedder
        >>> embedder = load_embedder("tiny-llm")
        >>> _ = add_lora(embedder, r=2, alpha=4)
        >>> base_embeddings(embedder, ["1, 2, 3"]).shape
        torch.Size([1, 128])
    """
    adapter = find_adapter(embedder)
    if adapter is None:
        raise ValueError("embedder: expected one with an adapter, got a model whose own weights are trained; add one")
    with adapter.disable_adapter():
        return encode(embedder, texts, prompt=prompt)
