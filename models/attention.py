"""Whether a model reads ahead: removing a decoder's causal mask, and proving by a forward pass which attention runs.

Dimension names: n texts, t tokens, d hidden size.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import PreTrainedConfig

from models.adapter import transformer_of
from models.backbones import Backbone
from models.quantised import each_token_alone

CAUSAL_BY_DEFAULT = ("llama", "mistral", "qwen2", "qwen3", "gemma2")
"""Model types that transformers runs with a causal mask unless their configuration says ``is_causal = False``."""

# A state that does not depend on a later token is computed twice from equal numbers; anything above rounding is real.
ROUNDING = 1e-6


def config_of(embedder: SentenceTransformer) -> PreTrainedConfig:
    """The configuration of the transformers model inside the embedder's first module, under an adapter or not."""
    config = transformer_of(embedder).config
    assert isinstance(config, PreTrainedConfig), type(config)
    return config


def remove_causal_mask(embedder: SentenceTransformer) -> None:
    """Let every token of a decoder read the whole text; other models are left as they are.

    It has to be said after loading: transformers ignores ``is_causal`` among the arguments of a configuration. The
    setting is saved with the model's configuration, and is not part of an adapter folder.

    Example:
        >>> from models import load_embedder
        >>> embedder = load_embedder("tiny-llm")
        >>> reads_ahead(embedder)
        False
        >>> remove_causal_mask(embedder)
        >>> reads_ahead(embedder)
        True
    """
    config = config_of(embedder)
    if config.model_type in CAUSAL_BY_DEFAULT:
        config.is_causal = False


@torch.no_grad()
def reads_ahead(embedder: SentenceTransformer) -> bool:
    """Whether a later token changes an earlier state: False for causal attention, True for bidirectional.

    Two texts of equal length that differ in the last token go through the transformer, alone and beside a longer
    one, because a kernel may treat a batch with padding in another way.

    Raises:
        ValueError: states that are not finite, or attention that changes with padding.
    """
    with each_token_alone(transformer_of(embedder)):
        ahead = {padded: _reads_ahead(embedder, padded=padded) for padded in (False, True)}
    if len(set(ahead.values())) > 1:
        kind = {True: "bidirectional", False: "causal"}
        raise ValueError(
            f"{config_of(embedder).model_type} model: expected one attention for every batch, got "
            f"{kind[ahead[False]]} without padding and {kind[ahead[True]]} with it; "
            "load it with attn_implementation eager or sdpa"
        )
    return ahead[True]


def _reads_ahead(embedder: SentenceTransformer, *, padded: bool) -> bool:
    model = transformer_of(embedder)
    # Ordinary tokens, away from the special ones, wherever they are in the vocabulary.
    first, second = _ordinary_tokens(embedder)
    ids = [[first, second, first, second], [first, second, first, first]]
    mask = [[1, 1, 1, 1], [1, 1, 1, 1]]
    if padded:
        ids = [*([*row, first, first] for row in ids), [first] * 6]
        mask = [*([*row, 0, 0] for row in mask), [1] * 6]
    device = embedder.device
    training = model.training
    model.eval()
    try:
        states: Float[Tensor, "n t d"] = model(
            input_ids=torch.tensor(ids, device=device), attention_mask=torch.tensor(mask, device=device)
        ).last_hidden_state.float()
    finally:
        model.train(training)
    earlier = states[:2, :3]
    if not bool(torch.isfinite(earlier).all()):
        raise ValueError(
            f"{config_of(embedder).model_type} model: expected finite states, got NaN or infinity in {states.dtype} from "
            f"weights of {next(model.parameters()).dtype}; load it in bfloat16 or float32"
        )
    difference = (earlier[0] - earlier[1]).abs().max()
    return bool(difference > ROUNDING * earlier.abs().max())


def _ordinary_tokens(embedder: SentenceTransformer) -> tuple[int, int]:
    special = set(embedder.tokenizer.all_special_ids)
    rows: int = config_of(embedder).vocab_size
    first, second, *_ = (token for token in range(rows) if token not in special)
    return first, second


def check_attention(
    embedder: SentenceTransformer, row: Backbone | None, *, source: str, bidirectional: bool = False
) -> None:
    """Refuse an embedder whose attention is not what its row of BACKBONES says.

    Args:
        embedder: on its device.
        row: of BACKBONES; it may be None where the mask was removed.
        source: the folder, for the message.
        bidirectional: expect no causal mask whatever the row says, as it was removed (--bidirectional).

    Raises:
        ValueError: names the row and the folder.
    """
    found = "bidirectional" if reads_ahead(embedder) else "causal"
    wanted = "bidirectional" if bidirectional or row is None else row.attention
    if found != wanted:
        what = f"backbone {row.name}" if row is not None else "model"
        why = "--bidirectional" if bidirectional else "BACKBONES"
        raise ValueError(
            f"{what}: expected {wanted} attention ({why}), got {found} from {source}; "
            "check is_causal and use_bidirectional_attention in its config.json, or load the folder by its path"
        )
