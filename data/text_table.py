"""Tables of text, JSONL or CSV, read strictly: every complaint names the file and the line."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any


def read_rows(path: str | Path, columns: Sequence[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(number of the line, cells by column) of every row of a .jsonl or .csv file in UTF-8; cells are not looked at yet.

    Raises:
        ValueError: no such file, another suffix, not UTF-8, not JSON or CSV, a CSV header without one of ``columns`` or with
            one twice, a CSV row with more cells than columns, a key twice in a JSON object.
    """
    file = Path(path)
    _check_file(file, columns)
    yield from _jsonl_rows(file, columns) if file.suffix == ".jsonl" else _csv_rows(file, columns)


def columns_of(path: str | Path, expected: Sequence[str]) -> tuple[str, ...]:
    """The columns of a table: a CSV's header, or the keys of a JSONL file's first row; none of an empty file.

    Args:
        path: the file.
        expected: columns that a complaint about the file names.

    Raises:
        ValueError: no such file, another suffix, not UTF-8, or a first row that is no JSON object.
    """
    file = Path(path)
    _check_file(file, expected)
    if file.suffix == ".jsonl":
        return next((tuple(row) for _, row in _jsonl_rows(file, expected)), ())
    try:
        return tuple(next(csv.reader(io.StringIO(_decode(file), newline="")), ()))
    except csv.Error as error:
        raise ValueError(f"{file}:1: expected CSV, got {error}") from None


def cell(file: Path, line: int, row: Mapping[str, Any], column: str, columns: Sequence[str]) -> str:
    """The text in ``column``; a label may be an integer too.

    Raises:
        ValueError: no such column, an empty cell, something else than text, or half a surrogate pair in it.
    """
    if column not in row:
        raise ValueError(
            f"{file}:{line}: expected the columns {','.join(columns)}, got {','.join(map(str, row))}; missing: {column}"
        )
    return checked(file, line, row[column], column)


def checked(file: Path, line: int, value: Any, column: str) -> str:
    """``value`` as a text.

    Raises:
        ValueError: it is empty, something else than text, or holds half a surrogate pair.
    """
    if column == "label" and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{file}:{line}: expected a non-empty {column}, got {value!r}; fill it in or drop the row")
    if not _is_unicode(value):
        raise ValueError(f"{file}:{line}: expected Unicode, got half a surrogate pair in the {column}; drop the row")
    return value


def _check_file(file: Path, columns: Sequence[str]) -> None:
    if file.suffix not in (".jsonl", ".csv"):
        raise ValueError(
            f"{file}: expected a .jsonl or .csv file with the columns {','.join(columns)}; got the suffix {file.suffix!r}"
        )
    if not file.is_file():
        raise ValueError(f"{file}: expected a file of labelled text, found none; check the path")


def _decode(file: Path) -> str:
    raw = file.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{file}:{line}: expected UTF-8, got the byte 0x{raw[error.start]:02x}; re-encode the file"
        ) from None


def _jsonl_rows(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    # Not str.splitlines: it would also cut at U+2028, which JSON strings may hold.
    for line, raw in enumerate(_decode(file).split("\n"), start=1):
        if not raw.strip():
            continue
        try:
            row = json.loads(raw, object_pairs_hook=partial(_each_key_once, raw))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{file}:{line}: expected one JSON object a line, got {error.msg.lower()} at column {error.colno}"
            ) from None
        if not isinstance(row, dict):
            raise ValueError(
                f"{file}:{line}: expected a JSON object with {' and '.join(columns)}, got {type(row).__name__}"
            )
        yield line, row


def _each_key_once(raw: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise json.JSONDecodeError("the same key twice", raw, 0)
    return row


def _csv_rows(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    content = _decode(file)
    reader = csv.DictReader(io.StringIO(content, newline=""), strict=True)
    try:
        header = list(reader.fieldnames or columns)
        if twice := [column for column in columns if header.count(column) > 1]:
            raise ValueError(f"{file}:1: expected each column once, got {twice[0]} twice; rename one of them")
        missing = [column for column in columns if column not in header]
        if missing:
            raise ValueError(
                f"{file}:1: expected the columns {','.join(columns)}, got {','.join(reader.fieldnames or [])}; missing: "
                f"{', '.join(missing)}"
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


def _is_unicode(value: str) -> bool:
    """JSON's escapes can spell a lone surrogate, which no tokenizer takes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
