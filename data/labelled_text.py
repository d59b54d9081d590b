"""The user's own labelled text: JSONL or CSV with the columns ``text`` and ``label``, read strictly."""

import csv
import hashlib
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from data.suites import Suite

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
    readers = {".jsonl": _jsonl_rows, ".csv": _csv_rows}
    if file.suffix not in readers:
        raise ValueError(
            f"{file}: expected a .jsonl or .csv file with the columns text,label; got the suffix {file.suffix!r}"
        )
    if not file.is_file():
        raise ValueError(f"{file}: expected a file of labelled text, found none; check the path")
    rows: dict[str, tuple[str, int]] = {}
    repeated = 0
    for line, row in readers[file.suffix](file, _decode(file)):
        text, label = (_field(file, line, row, column) for column in COLUMNS)
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


def _decode(file: Path) -> str:
    raw = file.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{file}:{line}: expected UTF-8, got the byte 0x{raw[error.start]:02x}; re-encode the file"
        ) from None


def _jsonl_rows(file: Path, content: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    # Not str.splitlines: it would also cut at U+2028, which JSON strings may hold.
    for line, raw in enumerate(content.split("\n"), start=1):
        if not raw.strip():
            continue
        try:
            row = json.loads(raw, object_pairs_hook=partial(_each_key_once, raw))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{file}:{line}: expected one JSON object a line, got {error.msg.lower()} at column {error.colno}"
            ) from None
        if not isinstance(row, dict):
            raise ValueError(f"{file}:{line}: expected a JSON object with text and label, got {type(row).__name__}")
        yield line, row


def _each_key_once(raw: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise json.JSONDecodeError("the same key twice", raw, 0)
    return row


def _csv_rows(file: Path, content: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(content, newline=""), strict=True)
    try:
        header = list(reader.fieldnames or COLUMNS)
        if twice := [column for column in COLUMNS if header.count(column) > 1]:
            raise ValueError(f"{file}:1: expected each column once, got {twice[0]} twice; rename one of them")
        missing = [column for column in COLUMNS if column not in header]
        if missing:
            raise ValueError(
                f"{file}:1: expected the columns text,label, got {','.join(reader.fieldnames or [])}; missing: {', '.join(missing)}"
            )
        for row in reader:
            if None in row:
                raise ValueError(
                    f"{file}:{reader.line_num}: expected {len(reader.fieldnames or ())} cells, got {len(row[None])} more; "
                    "put texts that hold a comma in double quotes"
                )
            yield reader.line_num, row
    except csv.Error as error:
        # the reader counts a line when it is through with it, so a broken one is the next, unless the file ended
        line = min(reader.line_num + 1, sum(1 for _ in io.StringIO(content, newline="")))
        raise ValueError(f"{file}:{line}: expected CSV, got {error}") from None


def _field(file: Path, line: int, row: Mapping[str, Any], column: str) -> str:
    if column not in row:
        raise ValueError(
            f"{file}:{line}: expected the columns text,label, got {','.join(map(str, row))}; missing: {column}"
        )
    value = row[column]
    if column == "label" and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{file}:{line}: expected a non-empty {column}, got {value!r}; fill it in or drop the row")
    if not _is_unicode(value):
        raise ValueError(f"{file}:{line}: expected Unicode, got half a surrogate pair in the {column}; drop the row")
    return value


def _is_unicode(value: str) -> bool:
    """JSON's escapes can spell a lone surrogate, which no tokenizer takes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(names: Sequence[str], *, most: int = 5) -> str:
    shown = ", ".join(map(repr, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
