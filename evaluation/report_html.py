"""A report as one HTML page that carries its style, script, drawings and pictures; nothing is fetched.

Whatever comes from outside (names, prompts, notes, reasons, context) is escaped. Without JavaScript the page is
complete; with it the table sorts by a click on a heading.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from evaluation.report_columns import CAVEATS, DASH, Column, cell, columns, number, one_line
from evaluation.report_plots import Point, curve_svg, tradeoff_svg
from evaluation.report_style import SCRIPT, STYLE

# The page may run its own script and show its own pictures, and reach nothing else, whatever a label contains.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def html_report(
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str,
    context: Mapping[str, Any],
    pictures: Mapping[str, bytes],
    curves: Mapping[str, Sequence[Point]],
) -> str:
    """The page as text; `pictures` maps a model's name to its PNG."""
    shown = columns(rows)
    body = "\n".join(
        part
        for part in (
            f"<h1>{_text(title)}</h1>",
            _context(context),
            _table(rows, shown),
            _reading(rows, shown),
            _curves(curves),
            _pictures(pictures),
        )
        if part
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _text(value: object) -> str:
    return escape(one_line(value))


def _context(context: Mapping[str, Any]) -> str:
    if not context:
        return ""
    pairs = (
        (key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for key, value in context.items()
    )
    return f'<dl class="context">{"".join(f"<div><dt>{_text(k)}</dt><dd>{_text(v)}</dd></div>" for k, v in pairs)}</dl>'


def _table(rows: Sequence[Mapping[str, Any]], shown: Sequence[Column]) -> str:
    reasons: dict[str, int] = {}
    texts = ["Prompt"] if any(row["prompt"] for row in rows) else []
    body = "\n".join(_row(row, shown, texts, reasons) for row in rows)
    notes = "".join(f"<li><sup>{mark}</sup> {_text(reason)}</li>" for reason, mark in reasons.items())
    notes += "".join(f"<li><b>{_text(row['name'])}</b>: {_text(row['note'])}</li>" for row in rows if row.get("note"))
    notes += "" if texts else "<li>No model was given a prompt.</li>"
    return (
        '<h2>The models</h2>\n<div class="scroll" tabindex="0"><table>\n'
        f"<thead>\n{_head(shown, texts)}\n</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
        + (f'\n<ul class="notes">{notes}</ul>' if notes else "")
    )


def _head(shown: Sequence[Column], texts: Sequence[str]) -> str:
    groups, titles, index = [], [], 1
    for group, members in groupby(shown, key=lambda column: column.group):
        listed = list(members)
        groups.append(f'<th class="group first" colspan="{len(listed)}" scope="colgroup">{_text(group)}</th>')
        for place, column in enumerate(listed):
            order = "ascending" if column.better == "↓" else "descending"
            edge = " first" if place == 0 else ""
            titles.append(
                f'<th class="title{edge}" scope="col" data-column="{index}" data-first="{order}" '
                f'title="{_text(column.meaning)}">{_text(column.title)}&nbsp;{column.better}</th>'
            )
            index += 1
    first = '<th class="model" scope="col" data-column="0" data-first="ascending" rowspan="2">Model</th>'
    rest = "".join(f'<th class="group first" rowspan="2" scope="col">{name}</th>' for name in texts)
    return f"<tr>{first}{''.join(groups)}{rest}</tr>\n<tr>{''.join(titles)}</tr>"


def _row(row: Mapping[str, Any], shown: Sequence[Column], texts: Sequence[str], reasons: dict[str, int]) -> str:
    kind = row["family"] if row["source"] == "measured" else f"{row['family']}, {row['source']}"
    if row["family"] == row["source"]:
        kind = row["family"]
    cells = [
        f'<th class="model" scope="row" data-value="{_text(row["name"])}"><i class="key f-{row["family"]}"></i>'
        f"{_text(row['name'])}<small>{_text(kind)}</small></th>"
    ]
    group = ""
    for column in shown:
        style = "first" if column.group != group else ""
        group = column.group
        cells.append(_cell(row, column, style, reasons))
    for key in texts:
        cells.append(f'<td class="text first">{_text(row.get(key.lower()) or DASH)}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _cell(row: Mapping[str, Any], column: Column, style: str, reasons: dict[str, int]) -> str:
    value, reason = cell(row, column)
    if value is None:
        mark = reasons.setdefault(reason, len(reasons) + 1)
        return f'<td class="{f"{style} none".strip()}" title="{_text(reason)}">{DASH}<sup>{mark}</sup></td>'
    by_chance = column.path == ("silhouette_true",) and ((row["null"] or {}).get("p") or 0.0) > 0.05
    names = f"{style} faint".strip() if by_chance else style
    attribute = f' class="{names}"' if names else ""
    return f'<td{attribute} data-value="{value!r}">{number(value, column.decimals)}</td>'


def _reading(rows: Sequence[Mapping[str, Any]], shown: Sequence[Column]) -> str:
    """What a reader needs beside the table: the caveats and the trade-off on the left, the legend on the right."""
    caveats = "".join(f"<li>{_text(caveat)}</li>" for caveat in CAVEATS)
    legend = "".join(
        f"<dt>{_text(f'{column.title} {column.better}')}</dt><dd>{_text(column.meaning)}</dd>" for column in shown
    )
    return (
        f'<div class="sides">\n<div>\n<h2>Before you compare</h2>\n<ul>{caveats}</ul>\n{_tradeoff(rows)}</div>\n'
        '<div>\n<h2>How to read the columns</h2>\n<p class="soft">↑ higher is better, ↓ lower is better, – not defined '
        "or not measured. A silhouette in grey is no better than chance (p above 0.05).</p>\n"
        f'<dl class="read">{legend}</dl>\n</div>\n</div>'
    )


def _tradeoff(rows: Sequence[Mapping[str, Any]]) -> str:
    plot = tradeoff_svg(rows)
    if not plot:
        return ""
    caption = "Up is better separated, right is closer to the base. Point at a dot for its numbers."
    if 'class="path"' in plot:
        caption += (
            " The dashed line joins the base to the last adapter: a merge is of interest where it lies above the line."
        )
    return (
        "<h2>Separation against retention</h2>\n"
        f'<figure><div class="scroll plot">{plot}</div><figcaption>{caption}</figcaption></figure>\n'
    )


def _curves(curves: Mapping[str, Sequence[Point]]) -> str:
    drawn = [(name, curve_svg(name, points)) for name, points in curves.items()]
    cards = "".join(f"<figure>{svg}<figcaption>{_text(name)}</figcaption></figure>" for name, svg in drawn if svg)
    return f'<h2>Training</h2>\n<div class="cards">{cards}</div>' if cards else ""


def _pictures(pictures: Mapping[str, bytes]) -> str:
    if not pictures:
        return ""
    cards = "".join(
        f'<figure><img alt="t-SNE of {_text(name)}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'
        f"<figcaption>{_text(name)}</figcaption></figure>"
        for name, content in pictures.items()
    )
    hint = "Distances between groups in these pictures say little; no number on this page is taken from them."
    return f'<h2>t-SNE of the paper suite</h2>\n<p class="soft">{hint}</p>\n<div class="cards">{cards}</div>'
