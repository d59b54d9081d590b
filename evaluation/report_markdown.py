"""A report as Markdown: a table for each group of columns, what to know when reading them, the pictures."""

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any
from urllib.parse import quote

from evaluation.report_columns import CAVEATS, FRONT_GROUPS, Column, cell, columns
from evaluation.report_text import DASH, number, one_line, visible

_SPECIAL = re.compile(r"([\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_]))")


def markdown_report(
    rows: Sequence[Mapping[str, Any]], *, title: str, context: Mapping[str, Any], pictures: Mapping[str, str]
) -> str:
    """The page as text; `pictures` maps a model's name to the address of its picture, relative to the page."""
    shown = columns(rows)
    reasons: dict[str, int] = {}
    front = [column for column in shown if column.group in FRONT_GROUPS]
    parts = [f"# {escaped(title)}", *_context(context), *_failures(rows), _table(rows, front, reasons, described=True)]
    for group, members in groupby(shown, key=lambda column: column.group):
        listed = list(members)
        known = [row for row in rows if any(cell(row, column)[0] is not None for column in listed)]
        if group not in FRONT_GROUPS and known:
            parts += [f"## {escaped(group)}", _table(known, listed, reasons)]
    parts += ["## Before you compare", "\n".join(f"- {caveat}" for caveat in CAVEATS)]
    meanings = [f"- **{_heading(c)}** ({escaped(c.group)}): {c.meaning}" for c in shown]
    parts += ["## How to read the columns", "\n".join(meanings)]
    if reasons:
        notes = [f"<sup>{mark}</sup> {escaped(reason)}" for reason, mark in reasons.items()]
        parts += ["## Why a number is missing", "  \n".join(notes)]
    if pictures:
        parts += [
            "## t-SNE of the paper suite",
            "Distances in these pictures say little; no number is taken from them.",
        ]
        parts += [f"![{escaped(name)}](<{quote(address)}>)" for name, address in pictures.items()]
    return "\n\n".join(parts) + "\n"


def escaped(text: object) -> str:
    """Text that Markdown shows as it is, inside a table too.

    Example:
        >>> escaped("a|b <i>")
        'a\\\\|b &lt;i&gt;'
    """
    plain = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", plain)


def _context(context: Mapping[str, Any]) -> list[str]:
    return ["\n".join(f"- {escaped(key)}: {escaped(value)}" for key, value in context.items())] if context else []


def _failures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    failed = [f"- **{escaped(row['name'])}**: {escaped(row['error'])}" for row in rows if row.get("error")]
    return ["Could not be measured:\n\n" + "\n".join(failed)] if failed else []


def _table(
    rows: Sequence[Mapping[str, Any]], shown: Sequence[Column], reasons: dict[str, int], *, described: bool = False
) -> str:
    """One table; a described one also says what the models are."""
    before, after = (["family", "source", "prompt"], ["note"]) if described else ([], [])
    head = ["model", *before, *(_heading(c) for c in shown), *after]
    lines = [_line(head), _line(["---"] * (1 + len(before)) + ["---:"] * len(shown) + ["---"] * len(after))]
    for row in rows:
        cells = [escaped(visible(row["name"])), *(escaped(row[key] or DASH) for key in before)]
        for column in shown:
            value, reason = cell(row, column)
            mark = "" if value is not None else f"<sup>{reasons.setdefault(reason, len(reasons) + 1)}</sup>"
            cells.append(number(value, column.decimals) + mark)
        lines.append(_line([*cells, *(escaped(row.get(key) or "") for key in after)]))
    return "\n".join(lines)


def _heading(column: Column) -> str:
    return f"{escaped(visible(column.title))} {column.better}".strip()


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
