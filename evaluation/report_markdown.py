"""A report as Markdown: the table, what to know when reading it, the pictures."""

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from evaluation.report_columns import CAVEATS, DASH, Column, cell, columns, number, one_line

_SPECIAL = re.compile(r"([\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_]))")


def markdown_report(
    rows: Sequence[Mapping[str, Any]], *, title: str, context: Mapping[str, Any], pictures: Mapping[str, str]
) -> str:
    """The page as text; `pictures` maps a model's name to the address of its picture, relative to the page."""
    parts = [f"# {escaped(title)}", *_context(context), *_table(rows)]
    parts.append("\n".join(f"- {caveat}" for caveat in CAVEATS))
    meanings = [f"- **{_heading(c)}** ({c.group}): {c.meaning}" for c in columns(rows)]
    parts += ["## How to read the columns", "\n".join(meanings)]
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


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    shown = columns(rows)
    reasons: dict[str, int] = {}
    head = ["model", "family", "source", "prompt", *(_heading(c) for c in shown), "note"]
    lines = [_line(head), _line(["---"] * 4 + ["---:"] * len(shown) + ["---"])]
    for row in rows:
        cells = [escaped(row[key]) for key in ("name", "family", "source")]
        cells.append(escaped(row["prompt"] or DASH))
        for column in shown:
            value, reason = cell(row, column)
            mark = "" if value is not None else f"<sup>{reasons.setdefault(reason, len(reasons) + 1)}</sup>"
            cells.append(number(value, column.decimals) + mark)
        lines.append(_line([*cells, escaped(row.get("note") or "")]))
    notes = [f"<sup>{mark}</sup> {escaped(reason)}" for reason, mark in reasons.items()]
    return ["\n".join(lines), *(["  \n".join(notes)] if notes else [])]


def _heading(column: Column) -> str:
    return f"{escaped(column.title)} {column.better}".strip()


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
