"""A report as one flat table: a row a model, a column a number, for spreadsheets and data frames."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NAMED = {"nuisance": "name", "lengths": "terms"}


def csv_report(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as CSV (RFC 4180: a header line, lines end in CRLF).

    Nested keys are joined by dots, as in ``suites.large.silhouette_true``; reasons stand in columns of their own; a
    number that is None, or that a model lacks, is an empty cell. Numbers keep all their digits. Text that a spreadsheet
    would run as a formula gets a leading apostrophe.

    Example:
        >>> csv_report([{"name": "=1+1", "null": {"z": 7.25}}, {"name": "b", "null": None}]).splitlines()
        ['name,null.z,null', "'=1+1,7.25,", 'b,,']
    """
    flat = [dict(_flat(row)) for row in rows]
    columns = list(dict.fromkeys(column for row in flat for column in row))
    buffer = io.StringIO()
    writer = csv.writer(buffer)  # with \r\n, so that it quotes either of the two
    writer.writerow([_cell(column) for column in columns])
    writer.writerows([[_cell(row.get(column)) for column in columns] for row in flat])
    return buffer.getvalue()


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        column = f"{prefix}{key}"
        if isinstance(item, Mapping):
            yield from _flat(item, f"{column}.")
        elif key in _NAMED and isinstance(item, list):
            # a list of records has one group of columns for each name that its records bear
            for record in item:
                rest = {other: number for other, number in record.items() if other != _NAMED[key]}
                yield from _flat(rest, f"{column}.{record[_NAMED[key]]}.")
        elif isinstance(item, list):
            yield column, json.dumps(item, ensure_ascii=False)
        else:
            yield column, item


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return f"'{value}" if value.lstrip(" ").startswith(_FORMULA) else value
    return repr(value)
