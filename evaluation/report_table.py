"""The table of the HTML page: the models, a column a number, groups of columns and kinds of rows to choose from.

Choosing is done by the page's style alone, so it works without JavaScript; sorting needs the page's script.
"""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from evaluation.report_columns import FRONT_GROUPS, Column, cell
from evaluation.report_style import KINDS, kind_of
from evaluation.report_text import DASH, breakable, number, one_line, visible


def table_section(rows: Sequence[Mapping[str, Any]], shown: Sequence[Column]) -> str:
    """Failures, what to choose, the table, and why numbers are missing."""
    reasons: dict[str, int] = {}
    prompts = any(row["prompt"] for row in rows)
    groups = list(dict.fromkeys(column.group for column in shown))
    body = "\n".join(_row(row, shown, groups, reasons, prompts=prompts) for row in rows)
    return (
        f'<section id="table"><h2>The models</h2>\n{_failures(rows)}{_choice(rows, shown, groups)}'
        '<div class="scroll" tabindex="0"><table class="models">\n'
        f"<thead>\n{_head(shown, groups, prompts=prompts)}\n</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
        f"{_notes(rows, reasons, prompts=prompts)}</section>"
    )


def hiding_style(shown: Sequence[Column]) -> str:
    """The rules that hide what is not chosen."""
    names = [f"g{place}" for place, _ in enumerate(dict.fromkeys(column.group for column in shown))]
    return "".join(f"main:has(#show-{name}:not(:checked)) .{name} {{ display: none; }}\n" for name in (*names, *KINDS))


def _failures(rows: Sequence[Mapping[str, Any]]) -> str:
    failed = [row for row in rows if row.get("error")]
    items = "".join(
        f"<li><b><bdi>{escape(visible(row['name']))}</bdi></b>: {escape(visible(row['error']))}</li>" for row in failed
    )
    return f'<div class="failed"><b>Could not be measured</b><ul>{items}</ul></div>\n' if failed else ""


def _choice(rows: Sequence[Mapping[str, Any]], shown: Sequence[Column], groups: Sequence[str]) -> str:
    kinds = [kind for kind in KINDS if any(kind_of(row) == kind for row in rows)]
    parts = []
    if len(kinds) > 1:
        boxes = "".join(_box(kind, KINDS[kind], checked=True) for kind in kinds)
        parts.append(f"<fieldset><legend>Rows</legend>{boxes}</fieldset>")
    if len(groups) > 1:
        boxes = "".join(
            _box(f"g{place}", group, checked=_first_seen(rows, [c for c in shown if c.group == group]))
            for place, group in enumerate(groups)
        )
        parts.append(f"<fieldset><legend>Columns</legend>{boxes}</fieldset>")
    return f'<form class="choice" autocomplete="off">{"".join(parts)}</form>\n' if parts else ""


def _first_seen(rows: Sequence[Mapping[str, Any]], members: Sequence[Column]) -> bool:
    """Front groups are shown at first, unless no model has a number there."""
    measured = any(cell(row, column)[0] is not None for row in rows for column in members)
    return members[0].group in FRONT_GROUPS and (measured or not rows)


def _box(name: str, text: str, *, checked: bool) -> str:
    mark = " checked" if checked else ""
    return f'<label><input type="checkbox" id="show-{name}"{mark}><span>{escape(visible(text))}</span></label>'


def _head(shown: Sequence[Column], groups: Sequence[str], *, prompts: bool) -> str:
    tops, titles = [], []
    for group, members in groupby(shown, key=lambda column: column.group):
        listed = list(members)
        name = f"g{groups.index(group)}"
        tops.append(
            f'<th class="group first {name}" colspan="{len(listed)}" scope="colgroup">{escape(visible(group))}</th>'
        )
        titles += [_title(column, name, first=place == 0) for place, column in enumerate(listed)]
    numbered = "".join(text.replace("<th ", f'<th data-column="{place + 1}" ', 1) for place, text in enumerate(titles))
    first = '<th class="model" scope="col" data-column="0" data-first="ascending" rowspan="2">Model</th>'
    rest = '<th class="group first" rowspan="2" scope="col">Prompt</th>' if prompts else ""
    return f"<tr>{first}{''.join(tops)}{rest}</tr>\n<tr>{numbered}</tr>"


def _title(column: Column, name: str, *, first: bool) -> str:
    order = "ascending" if column.better == "↓" else "descending"
    edge = " first" if first else ""
    arrow = f"&nbsp;{column.better}" if column.better else ""
    return (
        f'<th class="title {name}{edge}" scope="col" data-first="{order}" title="{escape(one_line(column.meaning))}">'
        f"{escape(visible(column.title))}{arrow}</th>"
    )


def _row(
    row: Mapping[str, Any], shown: Sequence[Column], groups: Sequence[str], reasons: dict[str, int], *, prompts: bool
) -> str:
    name = escape(visible(row["name"]))
    kind = row["family"] if row["family"] == row["source"] else f"{row['family']}, {row['source']}"
    kind = row["family"] if row["source"] == "measured" else kind
    failed = ' <em class="bad">failed</em>' if row.get("error") else ""
    cells = [
        f'<th class="model" scope="row" data-value="{name}"><i class="key f-{row["family"]}"></i>'
        f"<bdi>{breakable(row['name'])}</bdi><small>{kind}{failed}</small></th>"
    ]
    group = ""
    for column in shown:
        names = f"g{groups.index(column.group)}" + (" first" if column.group != group else "")
        group = column.group
        cells.append(_cell(row, column, names, reasons))
    if prompts:
        cells.append(f'<td class="text first"><bdi>{escape(one_line(row["prompt"] or DASH))}</bdi></td>')
    return f'<tr class="{kind_of(row)}">{"".join(cells)}</tr>'


def _cell(row: Mapping[str, Any], column: Column, names: str, reasons: dict[str, int]) -> str:
    value, reason = cell(row, column)
    if value is None:
        mark = reasons.setdefault(reason, len(reasons) + 1)
        return f'<td class="{names} none" title="{escape(one_line(reason))}">{DASH}<sup>{mark}</sup></td>'
    text = number(value, column.decimals)
    if column.path == ("silhouette_true",):
        names += " faint" if ((row["null"] or {}).get("p") or 0.0) > 0.05 else ""
        text += _ends(row.get("interval"))
    return f'<td class="{names}" data-value="{value!r}">{text}</td>'


def _ends(interval: Mapping[str, Any] | None) -> str:
    if not interval or interval["low"] is None or interval["high"] is None:
        return ""
    return f"<small>{number(interval['low'], 2)} to {number(interval['high'], 2)}</small>"


def _notes(rows: Sequence[Mapping[str, Any]], reasons: Mapping[str, int], *, prompts: bool) -> str:
    notes = [f"<li><sup>{mark}</sup> {escape(visible(reason))}</li>" for reason, mark in reasons.items()]
    same: dict[str, list[str]] = {}
    for row in rows:
        if row.get("note"):
            same.setdefault(row["note"], []).append(f"<b><bdi>{escape(visible(row['name']))}</bdi></b>")
    notes += [f"<li>{', '.join(names)}: {escape(visible(note))}</li>" for note, names in same.items()]
    notes += [] if prompts else ["<li>No model was given a prompt.</li>"]
    return f'\n<ul class="notes">{"".join(notes)}</ul>'
