"""The user's own pairs: JSONL or CSV with the columns ``anchor``, ``positive`` and, where there are some, hard negatives."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from data.labelled_text import COLUMNS as LABEL_COLUMNS
from data.labelled_text import LabelledText
from data.text_table import cell, checked, columns_of, read_rows
from data.training_texts import TrainingTexts

COLUMNS = ("anchor", "positive")
MOST_HELD_BACK = 100
"""Groups of pairs that a held-back part has at most: what is measured after every epoch costs their square."""


class Pair(NamedTuple):
    """Two texts that belong together, and some that do not belong to them though they look alike."""

    anchor: str
    positive: str
    negatives: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs, all with equally many hard negatives. ``groups[i]``: the same number for pairs that share an anchor or a positive."""

    source: str
    pairs: tuple[Pair, ...]
    groups: tuple[int, ...]

    @property
    def rows_a_pair(self) -> int:
        """Texts of one pair: anchor, positive, negatives."""
        return 2 + len(self.pairs[0].negatives) if self.pairs else 2

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text once."""
        return tuple(
            dict.fromkeys(text for pair in self.pairs for text in (pair.anchor, pair.positive, *pair.negatives))
        )


def is_pair_file(path: str | Path) -> bool:
    """Whether a table holds pairs rather than labelled text.

    Raises:
        ValueError: as `columns_of` says, or columns of both.
    """
    columns = columns_of(path, LABEL_COLUMNS)
    both = [[name for name in names if name in columns] for names in (LABEL_COLUMNS, COLUMNS)]
    if all(both):
        raise ValueError(
            f"{path}: expected the columns text,label or the columns anchor,positive, got {','.join(columns)}; keep one of "
            "the two sets"
        )
    return bool(both[1])


def read_pairs(path: str | Path) -> Pairs:
    """Read ``path`` (.jsonl or .csv, UTF-8, columns ``anchor`` and ``positive``; others are ignored).

    Hard negatives: a column ``negative`` (in JSONL a text or a list of texts), or columns ``negative_1``, ``negative_2`` ...

    Raises:
        ValueError: as `read_rows` says; an empty cell, a text twice in one pair, a pair twice, pairs with different numbers of
            negatives, or no rows; the message names file and line.
    """
    file = Path(path)
    lines: dict[tuple[str, str], int] = {}
    pairs: list[Pair] = []
    for line, row in read_rows(file, COLUMNS):
        anchor, positive = (cell(file, line, row, column, COLUMNS) for column in COLUMNS)
        pair = Pair(anchor, positive, tuple(_negatives(file, line, row)))
        if anchor == positive:
            raise ValueError(
                f"{file}:{line}: expected a positive that differs from the anchor, got {anchor[:60]!r} for both; drop the row"
            )
        if len({*pair.negatives, anchor, positive}) < 2 + len(pair.negatives):
            raise ValueError(
                f"{file}:{line}: expected negatives that differ from anchor, positive and each other, got one text twice; "
                "replace it"
            )
        if (anchor, positive) in lines:
            raise ValueError(
                f"{file}:{line}: expected every pair once, got that of line {lines[anchor, positive]} again; drop one of them"
            )
        lines[anchor, positive] = line
        if len(pair.negatives) != len((pairs or [pair])[0].negatives):
            raise ValueError(
                f"{file}:{line}: expected {len(pairs[0].negatives)} negatives as in the rows before, got "
                f"{len(pair.negatives)}; give every pair equally many, as all devices share a batch equally"
            )
        pairs.append(pair)
    if not pairs:
        raise ValueError(f"{file}: expected rows of pairs, got an empty file; each row needs anchor and positive")
    return Pairs(source=str(file), pairs=tuple(pairs), groups=_groups(pairs))


def check_pairs(data: Pairs) -> None:
    """A pair is told from others, so there must be others.

    Raises:
        ValueError: all pairs share their texts.
    """
    if len(set(data.groups)) < 2:
        raise ValueError(
            f"{data.source}: expected at least 2 pairs without a common text, got {len(data.pairs)} in one group; add pairs"
        )


def split_pairs(data: Pairs, *, every: int = 5, report: bool = True) -> tuple[Pairs, Pairs, Pairs]:
    """(training, selection, reported): one group of pairs in ``every`` for each of the last two, at most `MOST_HELD_BACK`.

    Groups go together, so that no text of anchors and positives is in two parts; a training pair with a held-back text among its
    negatives is left out. Where that would leave less than half of the pairs to training, nothing is held back. With
    ``report=False`` nothing is held back to be reported. Groups are ordered by the SHA-256 of their texts: the split depends on
    the content alone, not on the order of the file.
    """
    keys: dict[int, str] = {}
    for pair, group in zip(data.pairs, data.groups, strict=True):
        key = hashlib.sha256("\0".join(pair[:2]).encode()).hexdigest()
        keys[group] = min(key, keys.get(group, key))
    ordered = sorted(keys, key=keys.__getitem__)
    held: list[set[int]] = []
    for place in (1, 2):
        taken = ordered[place::every][:MOST_HELD_BACK] if place == 1 or report else []
        held.append(set(taken if len(taken) >= 2 else []))
    selection, reported = (_part(data, groups) for groups in held)
    reserved = {text for part in (selection, reported) for pair in part.pairs for text in pair[:2]}
    training = _part(data, set(data.groups) - held[0] - held[1])
    kept = [i for i, pair in enumerate(training.pairs) if not reserved.intersection(pair.negatives)]
    if 2 * len(kept) < len(data.pairs):
        return data, _part(data, set()), _part(data, set())
    training = replace(
        training, pairs=tuple(training.pairs[i] for i in kept), groups=tuple(training.groups[i] for i in kept)
    )
    return training, selection, reported


def pair_rows(data: Pairs) -> TrainingTexts:
    """Rows for InfoNCE: anchor, positive and negatives of each pair; the label is the pair's number."""
    texts = [text for pair in data.pairs for text in (pair.anchor, pair.positive, *pair.negatives)]
    size = data.rows_a_pair
    return TrainingTexts(
        texts=texts,
        labels=[row // size for row in range(len(texts))],
        blocks=range(len(texts)),
        roles=[row % size for row in range(len(texts))],
    )


def as_labelled(data: Pairs) -> LabelledText:
    """Anchors and positives as labelled text: each group of pairs, commonly one pair, is a label. Negatives have none."""
    names = tuple(dict.fromkeys(data.groups))
    index = {group: i for i, group in enumerate(names)}
    labels = {
        text: index[group] for pair, group in zip(data.pairs, data.groups, strict=True) for text in pair[:2]
    }  # a text lies in one group
    return LabelledText(
        source=data.source,
        texts=tuple(labels),
        labels=tuple(labels.values()),
        names=tuple(f"pair {i + 1}" for i in range(len(names))),
    )


def _negatives(file: Path, line: int, row: Mapping[str, Any]) -> Iterator[str]:
    numbered = sorted((int(found[1]), str(key)) for key in row if (found := re.fullmatch(r"negative_(\d+)", str(key))))
    if numbered and "negative" in row:
        raise ValueError(
            f"{file}:{line}: expected a column negative or columns negative_1, negative_2 ..., got both; keep one of the two"
        )
    if isinstance(given := row.get("negative"), list):
        yield from (checked(file, line, text, "negative") for text in given)
    elif "negative" in row:
        yield checked(file, line, given, "negative")
    for _, column in numbered:
        yield checked(file, line, row[column], column)


def _groups(pairs: Sequence[Pair]) -> tuple[int, ...]:
    """Connected components over the texts of anchors and positives, numbered by first appearance."""
    parent: dict[str, str] = {}

    def root(text: str) -> str:
        parent.setdefault(text, text)
        while parent[text] != text:
            parent[text] = parent[parent[text]]
            text = parent[text]
        return text

    for pair in pairs:
        parent[root(pair.anchor)] = root(pair.positive)
    numbers: dict[str, int] = {}
    return tuple(numbers.setdefault(root(pair.anchor), len(numbers)) for pair in pairs)


def _part(data: Pairs, groups: set[int]) -> Pairs:
    kept = [i for i, group in enumerate(data.groups) if group in groups]
    return Pairs(
        source=data.source, pairs=tuple(data.pairs[i] for i in kept), groups=tuple(data.groups[i] for i in kept)
    )
