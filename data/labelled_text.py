"""The user's own labelled text: JSONL or CSV with the columns ``text`` and ``label``, read strictly."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from data.suites import Suite
from data.text_table import cell, read_rows

COLUMNS = ("text", "label")


@dataclass(frozen=True, kw_only=True)
class LabelledText:
    """Texts with integer labels; ``labels[i]`` indexes ``names`` (sorted). ``repeated`` rows said the same again and were dropped."""

    source: str
    texts: tuple[str, ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]
    repeated: int = 0


def read_labelled_text(path: str | Path) -> LabelledText:
    """Read ``path`` (.jsonl or .csv, UTF-8, columns ``text`` and ``label``; others are ignored).

    Raises:
        ValueError: no such file, another suffix, not UTF-8, a missing column, a CSV row with more cells than columns, an empty
            text or label, a text under two labels, or no rows; the message names file and line.
    """
    file = Path(path)
    rows: dict[str, tuple[str, int]] = {}
    repeated = 0
    for line, row in read_rows(file, COLUMNS):
        text, label = (cell(file, line, row, column, COLUMNS) for column in COLUMNS)
        if text in rows and rows[text][0] != label:
            raise ValueError(
                f"{file}:{line}: this text has the label {label!r} here and {rows[text][0]!r} on line {rows[text][1]}; keep one"
            )
        repeated += text in rows
        rows.setdefault(text, (label, line))
    if not rows:
        raise ValueError(f"{file}: expected rows of labelled text, got an empty file; each row needs text and label")
    names = tuple(sorted({label for label, _ in rows.values()}))
    index = {name: i for i, name in enumerate(names)}
    labels = tuple(index[label] for label, _ in rows.values())
    return LabelledText(source=str(file), texts=tuple(rows), labels=labels, names=names, repeated=repeated)


def check_trainable(data: LabelledText) -> None:
    """A contrastive loss needs two labels, and two texts under each.

    Raises:
        ValueError: one label only, or a label with a single text (named).
    """
    if len(data.names) < 2:
        raise ValueError(
            f"{data.source}: expected at least 2 labels, got only {data.names[0]!r}; add texts of another label"
        )
    counts = Counter(data.labels)
    single = [name for i, name in enumerate(data.names) if counts[i] < 2]
    if single:
        raise ValueError(
            f"{data.source}: expected at least 2 texts a label, got 1 for {_shown(single)}; add texts or drop these labels"
        )


def check_disjoint(training: Sequence[str], evaluation: Sequence[str], *, names: tuple[str, str]) -> None:
    """No text may be trained on and evaluated.

    Raises:
        ValueError: naming how many and the first.
    """
    both = set(training) & set(evaluation)
    if both:
        first = next(text for text in evaluation if text in both)
        raise ValueError(
            f"{names[0]} and {names[1]}: expected different texts for training and evaluation, got {len(both)} in both, "
            f"first {first[:60]!r}; remove them from one"
        )


def split_held_back(
    data: LabelledText, *, every: int = 5, report: bool = True
) -> tuple[LabelledText, LabelledText, LabelledText]:
    """(training, selection, reported): within each label, one text in ``every`` for each of the last two.

    With ``report=False`` nothing is held back to be reported. Texts are ordered by their SHA-256, so the split depends on the
    content alone, not on the order of the file. Labels with at most ``every`` texts go to training whole, and all labels do
    when fewer than two have more.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for i, label in enumerate(data.labels):
        members[label].append(i)
    spare = sum(len(indices) > every for indices in members.values()) >= 2
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for indices in members.values():
        ordered = sorted(indices, key=lambda i: hashlib.sha256(data.texts[i].encode()).hexdigest())
        for place, i in enumerate(ordered):
            held = spare and len(ordered) > every and place % every in ((1, 2) if report else (1,))
            parts[place % every if held else 0].append(i)
    training, selection, reported = (sorted(part) for part in parts)
    return _subset(data, training), _subset(data, selection), _subset(data, reported)


def suite_of(data: LabelledText, name: str) -> Suite:
    """The texts as a suite; each text is a block of its own, and length is the only nuisance."""
    lengths = tuple(float(len(text)) for text in data.texts)
    return Suite(
        name=name,
        texts=data.texts,
        labels=data.labels,
        families=data.names,
        blocks=tuple(f"text:{i}" for i in range(len(data.texts))),
        nuisances=MappingProxyType({"length": lengths}),
    )


def _subset(data: LabelledText, indices: Sequence[int]) -> LabelledText:
    return LabelledText(
        source=data.source,
        texts=tuple(data.texts[i] for i in indices),
        labels=tuple(data.labels[i] for i in indices),
        names=data.names,
    )


def _shown(names: Sequence[str], *, most: int = 5) -> str:
    shown = ", ".join(map(repr, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
