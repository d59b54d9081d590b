"""Packing: texts end to end in one row, with positions that start again at each, so that nothing is padded.

Dimension names: n texts, t tokens of the longest, T tokens of all, d embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from sentence_transformers import SentenceTransformer
from torch import Tensor

from models.encoding import modes_kept

Row = Mapping[str, Any]
PLACES, MASK = "packed_places", "packed_mask"
"""Of a packed part: where each token of each text lies in the row, (n, t), and which of these are tokens."""
PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


def packed_rows(rows: Sequence[Row]) -> dict[str, Any]:
    """Lay tokenised texts end to end: features of one row of T tokens, and where each text lies in it.

    Args:
        rows: what `TokenRows.row` gives.

    Example:
        >>> part = packed_rows([{"input_ids": torch.tensor([5, 6])}, {"input_ids": torch.tensor([7, 8, 9])}])
        >>> part["input_ids"].tolist(), part["position_ids"].tolist()
        ([[5, 6, 7, 8, 9]], [[0, 1, 0, 1, 2]])
    """
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    steps = torch.arange(int(lengths.max()))
    mask = steps < lengths[:, None]
    places = (lengths.cumsum(0) - lengths)[:, None] + steps
    return {
        **{key: value for key, value in rows[0].items() if key not in PER_TOKEN},
        "input_ids": torch.cat([row["input_ids"] for row in rows])[None],
        "position_ids": torch.cat([torch.arange(int(length)) for length in lengths])[None],
        PLACES: torch.where(mask, places, 0),
        MASK: mask.long(),
    }


def packed_share(part: Mapping[str, Any], start: int, end: int) -> dict[str, Any]:
    """The texts from ``start`` up to ``end`` of a packed part, packed."""
    lengths = part[MASK].sum(dim=1).tolist()
    ends = [sum(lengths[:place]) for place in range(1, len(lengths) + 1)]
    spans = [slice(ends[place] - lengths[place], ends[place]) for place in range(start, end)]
    shared = {key: value for key, value in part.items() if key not in (PLACES, MASK, *PER_TOKEN)}
    own = packed_rows([{"input_ids": part["input_ids"][0, span]} for span in spans])
    return shared | {key: value.to(part["input_ids"].device) for key, value in own.items()}


def embed_packed(embedder: SentenceTransformer, part: Mapping[str, Any]) -> Float[Tensor, "n d"]:
    """Embed a packed part, with gradient: the transformer reads one row, everything behind it reads the texts of it.

    transformers sees by the positions where a text begins, and keeps attention within it: of decoders with causal attention, not
    of most others; `packs` finds out.

    Args:
        embedder: one that `packs`.
        part: from `packed_rows`, on the embedder's device.
    """
    features = {key: value for key, value in part.items() if key not in (PLACES, MASK)}
    # a cache would hide from transformers that the row is packed
    states = embedder[0](features | {"use_cache": False})["token_embeddings"][0]
    after = {key: value for key, value in features.items() if key not in PER_TOKEN}
    after |= {"token_embeddings": states[part[PLACES]], "attention_mask": part[MASK]}
    for module in list(embedder)[1:]:
        after = module(after)
    embeddings = after["sentence_embedding"]
    assert isinstance(embeddings, Tensor)
    return embeddings


@torch.no_grad()
def packs(embedder: SentenceTransformer, rows: Sequence[Row], *, tolerance: float = 1e-4) -> bool:
    """Whether texts that are packed are embedded as they are alone; computed, not looked up.

    Args:
        embedder: left in the mode that it is in.
        rows: two or more tokenised texts, of several tokens each.
        tolerance: largest difference, relative to the largest element of the embeddings; 1e-4 is far above float32's rounding
            and far below what reading another text does. Of a model in 16 bits 0.05 is allowed.
    """
    device, half = embedder.device, next(embedder.parameters()).dtype in (torch.bfloat16, torch.float16)

    def placed(part: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in part.items()}

    with modes_kept(embedder):
        embedder.eval()
        try:
            packed = embed_packed(embedder, placed(packed_rows(rows)))
        except (TypeError, ValueError, IndexError, RuntimeError):  # a model without positions, or of fewer
            return False
        alone = torch.cat(
            [
                embedder(placed({k: v[None] if isinstance(v, Tensor) and v.ndim == 1 else v for k, v in row.items()}))[
                    "sentence_embedding"
                ]
                for row in rows
            ]
        )
    allowed = (0.05 if half else tolerance) * alone.abs().max()
    return bool((packed - alone).abs().max() <= allowed)
