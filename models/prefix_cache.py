"""PrefixCache: hidden states below the lowest block that is trained, computed once a text.

Dimension names: n texts, t tokens of the longest, w width of the hidden states.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from models.encoding import modes_kept
from models.prefix_pass import PrefixPass
from models.prefix_store import RowStore

STATES = "prefix_states"
"""The feature in which a batch brings its states along."""
READ = frozenset({"input_ids", "attention_mask", "token_type_ids", "modality", "prompt_length", STATES})
TOKENS = ("input_ids", "token_type_ids")
Row = dict[str, Tensor]
"""The real tokens of one text, (t,) each."""


class PrefixCache:
    """Makes every pass of an embedder begin at block `layer`, with states that are computed once a text.

    Installed it works unseen: training, ``encode`` and all that is built on them look their texts up by their tokens (which
    prompt and tokenizer have made), and compute and keep what is not there yet. A text's states are a function of the text
    alone, whatever batch it is met in: on the CPU it is computed by itself, on a GPU in batches of one shape. So a resumed
    run, another order or another number of ranks reads the same numbers. A pass with features of another kind, such as
    packed rows, is left as it is.

    Args:
        embedder: what lies below block `layer` must not change any more.
        layer: 1 to the number of blocks - 1; see `lowest_trained_block`.
        store: where the states are kept.
        say: told, once, when the store can keep no more; passes with new texts are then whole ones.

    Example:
        >>> from models import load_embedder
        >>> from models.prefix_store import MemoryStore
        >>> embedder, store = load_embedder("tiny-llm"), MemoryStore()
        >>> whole = embedder.encode(["1, 2", "1, 2, 3"])
        >>> with PrefixCache(embedder, 4, store).installed():
        ...     bool(abs(embedder.encode(["1, 2", "1, 2, 3"]) - whole).max() < 1e-6), len(store)
        (True, 2)
    """

    def __init__(
        self, embedder: SentenceTransformer, layer: int, store: RowStore, *, say: Callable[[str], None] | None = None
    ) -> None:
        self.embedder, self.layer, self.store = embedder, layer, store
        self._say = say
        self._pass = PrefixPass(embedder, layer)
        self._hooks: list[Any] = []
        self._running = ExitStack()

    def install(self) -> None:
        """Work from now on, in every pass of the embedder."""
        if not self._hooks:
            first: nn.Module = self.embedder[0]
            self._hooks = [
                first.register_forward_pre_hook(self._before),
                first.register_forward_hook(self._after, always_call=True),
            ]

    def remove(self) -> None:
        """Leave the embedder as it was."""
        while self._hooks:
            self._hooks.pop().remove()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Installed in the block."""
        self.install()
        try:
            yield
        finally:
            self.remove()

    def prove(self, texts: Sequence[str]) -> float:
        """Compare embeddings with the cache and without it: each text by itself, and all together.

        Returns:
            The largest difference, as a part of the largest element.

        Raises:
            ValueError: it is more than rounding: blocks of this model need more than the states of the one below.
        """
        self.remove()
        worst = 0.0
        precision = next(each.dtype for each in self.embedder.parameters() if each.is_floating_point())
        with modes_kept(self.embedder), torch.no_grad():
            self.embedder.eval()
            batches = [*([text] for text in texts), list(texts)]
            wanted = [self._embedded(batch) for batch in batches]
            with self.installed():
                self._embedded(list(texts))
                # All is there now, and what a block may have left behind is of another batch.
                for batch, whole in zip(reversed(batches), reversed(wanted), strict=True):
                    difference = (self._embedded(batch) - whole).abs().max() / whole.abs().max().clamp_min(1e-12)
                    worst = max(worst, float(difference.nan_to_num(torch.inf)))
        allowed = max(1e-5, 8 * torch.finfo(precision).eps if precision.itemsize < 4 else 0.0)
        if not worst <= allowed:
            raise ValueError(
                f"prefix cache: expected embeddings as without it (difference at most {allowed:g}), got {worst:.2g}; "
                "this model is trained without it (--no-prefix-cache)"
            )
        return worst

    def fill(self, rows: Sequence[Row], *, autocast: torch.dtype | None = None) -> None:
        """Compute and keep the states of texts that are not there yet.

        Args:
            rows: tokens of each text, as `TokenRows.row` gives them.
            autocast: the precision of the passes that will read them, where it is a mixed one.
        """
        device = self.embedder.device.type
        with torch.autocast(device, dtype=autocast, enabled=autocast is not None):
            self._compute([{name: row[name] for name in TOKENS if name in row} for row in rows])

    def attach(self, part: dict[str, Any], *, autocast: torch.dtype | None = None) -> None:
        """Put the states of a batch's part into it, if all are there: on the CPU, without a pass, as a worker can."""
        rows = _rows(part)
        if rows is None:
            return
        if any(_key(row, str(autocast)) not in self.store for row in rows):
            self.store.refresh()  # what the step's process has kept since this one was forked
        states = self._joined(rows, part, str(autocast))
        if states is not None:
            part[STATES] = states

    def _before(self, transformer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        features = dict(args[0])
        states = features.pop(STATES, None)
        self._running.close()
        if states is None:
            states = self._looked_up(features)
        if states is not None:
            self._running.enter_context(self._pass.skipping(states))
        return (features, *args[1:])

    def _after(self, transformer: nn.Module, args: object, output: object) -> None:
        self._running.close()

    def _looked_up(self, features: Mapping[str, Any]) -> Float[Tensor, "n t w"] | None:
        rows = _rows(features)
        if rows is None:
            return None
        self._compute(rows)
        return self._joined(rows, features, self._precision())

    def _joined(self, rows: Sequence[Row], features: Mapping[str, Any], precision: str) -> Tensor | None:
        """The rows' states where the batch has their tokens, zeros where it has padding; None if one is not there."""
        found = [self.store.get(_key(row, precision)) for row in rows]
        known = [each for each in found if each is not None]
        if len(known) < len(found) or not known:
            return None
        shape = features["input_ids"].shape
        places = [_places(features, line) for line in range(len(rows))]
        joined = known[0].new_zeros((*shape, known[0].shape[1]))
        for line, place, states in zip(joined, places, known, strict=True):
            line[place] = states
        return joined

    def _compute(self, rows: Sequence[Row]) -> None:
        precision = self._precision()
        missing = {key: row for row in rows if (key := _key(row, precision)) not in self.store}
        if not missing or getattr(self.store, "failure", None) is not None:
            return
        # States of inference mode could not be read by a pass that has a gradient.
        transformer: nn.Module = self.embedder[0]
        with torch.inference_mode(False), modes_kept(transformer):
            transformer.eval()
            for keys in self._groups(missing):
                for key, states in zip(keys, self._computed([missing[key] for key in keys]), strict=True):
                    if not self.store.put(key, states):
                        self._cannot_keep()
                        return

    def _cannot_keep(self) -> None:
        failure = getattr(self.store, "failure", None)
        if failure is not None and self._say is not None:
            self._say(f"prefix cache: no more states are kept, texts without are computed whole: {failure}")

    def _groups(self, missing: Mapping[bytes, Row]) -> list[list[bytes]]:
        """Keys of the texts of each pass: one on the CPU; on a GPU up to 16 that are padded to one multiple of 16."""
        if self._alone():
            return [[key] for key in missing]
        alike: dict[int, list[bytes]] = {}
        for key, row in missing.items():
            alike.setdefault(self._rounded(len(row["input_ids"])), []).append(key)
        return [keys[start : start + 16] for _, keys in sorted(alike.items()) for start in range(0, len(keys), 16)]

    def _computed(self, rows: Sequence[Row]) -> list[Tensor]:
        """States of a group, (t, w) each on the CPU."""
        device = self.embedder.device
        lengths = [len(row["input_ids"]) for row in rows]
        if self._alone():
            features = {name: value[None] for name, value in rows[0].items()}
            features["attention_mask"] = torch.ones(1, lengths[0], dtype=torch.long)
        else:
            # always of one shape, so that no row's numbers depend on how many were missing
            filled = [*rows, *[rows[0]] * (16 - len(rows))]
            shape = (16, self._rounded(max(lengths)))
            features = {name: torch.zeros(shape, dtype=torch.long) for name in (*rows[0], "attention_mask")}
            for line, row in enumerate(filled):
                for name, value in row.items():
                    features[name][line, : len(value)] = value
                features["attention_mask"][line, : len(row["input_ids"])] = 1
        states = self._pass.capture({name: value.to(device) for name, value in features.items()}).cpu()
        return [states[line, :length].clone() for line, length in enumerate(lengths)]

    def _alone(self) -> bool:
        return self.embedder.device.type == "cpu"

    def _rounded(self, tokens: int) -> int:
        """Up to a multiple of 16 or the most that the model reads, whose positions may end there."""
        most = self.embedder.max_seq_length
        rounded = -(-tokens // 16) * 16
        return rounded if most is None else max(tokens, min(rounded, most))

    def _precision(self) -> str:
        device = self.embedder.device.type
        return str(torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None)

    def _embedded(self, texts: list[str]) -> Tensor:
        features = self.embedder.preprocess(texts)
        device = self.embedder.device
        placed = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in features.items()}
        embeddings: Tensor = self.embedder(placed)["sentence_embedding"]
        return embeddings.float()


def _rows(features: Mapping[str, Any]) -> list[Row] | None:
    """The real tokens of each text of a batch, on the CPU; None for features that are not rows of tokens."""
    ids = features.get("input_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2 or not READ.issuperset(features):
        return None
    if features.get("modality", "text") != "text":
        return None
    tokens = {name: features[name].cpu() for name in TOKENS if name in features}
    on_cpu = {"attention_mask": features["attention_mask"].cpu()} if "attention_mask" in features else {}
    return [
        {name: value[line][_places(tokens | on_cpu, line)] for name, value in tokens.items()}
        for line in range(len(ids))
    ]


def _places(features: Mapping[str, Any], line: int) -> Tensor:
    """Where one text of a batch has its tokens, (t,) of bool on the CPU."""
    mask = features.get("attention_mask")
    if mask is None:
        return torch.ones(features["input_ids"].shape[1], dtype=torch.bool)
    found: Tensor = mask[line].cpu() != 0
    return found


def _key(row: Row, precision: str) -> bytes:
    digest = hashlib.blake2b(precision.encode(), digest_size=16)
    for name, value in sorted(row.items()):
        digest.update(name.encode())
        digest.update(value.to(torch.long).contiguous().numpy().tobytes())
    return digest.digest()
