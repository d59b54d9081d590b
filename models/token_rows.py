"""TokenRows: texts tokenised once, and padded together as often as batches need them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

Row = dict[str, Tensor]
"""What the embedder's ``preprocess`` makes of one text: tensors of shape (t,), t its tokens; others as they are."""


class TokenRows:
    """Remembers what the embedder's own ``preprocess`` makes of each text, so that a text is tokenised once.

    Args:
        embedder: whose ``preprocess`` reads.
        prompt: put before every text; None for none.

    Example:
        >>> from models import load_embedder
        >>> rows = TokenRows(load_embedder("tiny-encoder"))
        >>> rows.padded([rows.row("1, 2"), rows.row("1, 2, 3")])["attention_mask"].sum(dim=1).tolist()
        [4, 6]
    """

    def __init__(self, embedder: SentenceTransformer, *, prompt: str | None = None) -> None:
        self._preprocess = embedder.preprocess
        self._prompt = prompt
        self._side = embedder.tokenizer.padding_side
        self._fill = {"input_ids": embedder.tokenizer.pad_token_id or 0}
        self._rows: dict[str, Row] = {}

    def add(self, texts: Iterable[str]) -> None:
        """Tokenise the texts that are not known yet."""
        for text in texts:
            self.row(text)

    def row(self, text: str) -> Row:
        """The tokens of one text."""
        found = self._rows.get(text)
        if found is None:
            features = self._preprocess([text], prompt=self._prompt)
            found = {
                key: value[0] if isinstance(value, Tensor) and value.ndim == 2 else value
                for key, value in features.items()
            }
            self._rows[text] = found
        return found

    def longest(self, count: int) -> list[Row]:
        """The longest rows known, the longest last; again from the start where there are fewer than ``count``."""
        rows = sorted(self._rows.values(), key=lambda row: len(row["input_ids"]))
        return (rows * -(-count // len(rows)))[-count:]

    def padded(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Rows side by side as ``preprocess`` would have given them together: (n, t) tensors, t the longest's tokens."""
        longest = max(len(row["input_ids"]) for row in rows)
        return {key: self._joined(key, [row[key] for row in rows], longest) for key in rows[0]}

    def _joined(self, key: str, values: Sequence[Tensor], longest: int) -> Tensor:
        if not isinstance(values[0], Tensor) or values[0].ndim == 0:
            return values[0]
        joined = torch.full((len(values), longest), self._fill.get(key, 0), dtype=values[0].dtype)
        for line, value in zip(joined, values, strict=True):
            line[: len(value)] = value
            if self._side == "left" and len(value) < longest:
                line.copy_(line.roll(longest - len(value)))
        return joined
