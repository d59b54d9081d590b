"""A report as one HTML page that carries its style, script, data, drawings and pictures; nothing is fetched.

Whatever comes from outside (names, prompts, notes, reasons, context, texts) is escaped. Without JavaScript the page is
complete; with it the table sorts by a click on a heading, and the numbers can be saved.
"""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from evaluation.report_bars import bars_section
from evaluation.report_columns import CAVEATS, Column, columns
from evaluation.report_curves import Point, curves_section
from evaluation.report_download import data_script
from evaluation.report_lengths import lengths_section
from evaluation.report_models import models_section
from evaluation.report_nuisance import nuisance_section
from evaluation.report_panels import Panel
from evaluation.report_script import SCRIPT
from evaluation.report_style import STYLE
from evaluation.report_table import hiding_style, table_section
from evaluation.report_text import visible
from evaluation.report_tradeoff import tradeoff_section

# The page may run its own script and show its own pictures, and reach nothing else, whatever a label contains.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_SECTION = re.compile(r'<section id="(\w+)"><h2>(.*?)</h2>')


def html_report(
    report: Mapping[str, Any],
    *,
    title: str,
    pictures: Mapping[str, bytes],
    curves: Mapping[str, Sequence[Point]],
    panels: Mapping[str, Panel],
) -> str:
    """The page as text; `pictures` maps a model's name to its PNG, shown where there are no panels."""
    rows: Sequence[Mapping[str, Any]] = report["rows"]
    shown = columns(rows)
    sections = [
        table_section(rows, shown),
        _caveats(),
        bars_section(rows),
        tradeoff_section(rows),
        lengths_section(rows),
        nuisance_section(rows),
        models_section(rows, panels),
        "" if panels else _pictures(pictures),
        curves_section(curves),
        _reading(shown),
    ]
    body = "\n".join(section for section in sections if section)
    head = (
        f"<header><h1><bdi>{escape(visible(title))}</bdi></h1>\n{_context(report['context'])}\n{_menu(body)}</header>"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(visible(title))}</title>\n<style>{STYLE}{hiding_style(shown)}</style>\n</head>\n"
        f"<body>\n<main>\n{head}\n{body}\n</main>\n{data_script(report, panels)}\n"
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _context(context: Mapping[str, Any]) -> str:
    if not context:
        return ""
    pairs = (
        (key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for key, value in context.items()
    )
    listed = "".join(
        f"<div><dt>{escape(visible(key))}</dt><dd><bdi>{escape(visible(value))}</bdi></dd></div>"
        for key, value in pairs
    )
    return f'<dl class="context">{listed}</dl>'


def _menu(body: str) -> str:
    """Links to the sections that there are; the script puts the buttons beside them."""
    links = "".join(f'<a href="#{name}">{heading}</a>' for name, heading in _SECTION.findall(body))
    return f'<nav aria-label="Sections">{links}<span id="save"></span></nav>'


def _caveats() -> str:
    listed = "".join(f"<li>{escape(caveat)}</li>" for caveat in CAVEATS)
    return f'<section id="caveats"><h2>Before you compare</h2>\n<ul class="caveats">{listed}</ul></section>'


def _reading(shown: Sequence[Column]) -> str:
    parts: list[str] = []
    said: set[str] = set()  # what holds for every suite, family or benchmark is said once
    for group, members in groupby(shown, key=lambda column: column.group):
        entries = ""
        for column in members:
            if column.meaning not in said:
                said.add(column.meaning)
                title = escape(visible(column.title))
                entries += f"<dt>{title} {column.better}</dt><dd>{escape(visible(column.meaning))}</dd>"
        parts.append(f"<div><h3>{escape(visible(group))}</h3><dl>{entries}</dl></div>" if entries else "")
    return (
        '<section id="reading"><h2>How to read the columns</h2>\n<p class="soft">↑ higher is better, ↓ lower is better, – '
        "not defined or not measured. A silhouette in grey is no better than chance (p above 0.05).</p>\n"
        f'<div class="read">{"".join(parts)}</div></section>'
    )


def _pictures(pictures: Mapping[str, bytes]) -> str:
    if not pictures:
        return ""
    cards = "".join(
        f'<figure class="card"><img alt="t-SNE of {escape(visible(name))}" '
        f'src="data:image/png;base64,{base64.b64encode(content).decode()}">'
        f"<figcaption><bdi>{escape(visible(name))}</bdi></figcaption></figure>"
        for name, content in pictures.items()
    )
    hint = "Distances between groups in these pictures say little; no number on this page is taken from them."
    return (
        f'<section id="planes"><h2>t-SNE of the paper suite</h2>\n<p class="soft">{hint}</p>\n'
        f'<div class="cards">{cards}</div></section>'
    )
