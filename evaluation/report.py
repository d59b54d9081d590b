"""A report of models: report.json, report.csv, report.md and report.html, all from the same rows."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.report_csv import csv_report
from evaluation.report_curves import Point
from evaluation.report_html import html_report
from evaluation.report_markdown import markdown_report
from evaluation.report_panels import Panel
from evaluation.report_schema import validate_report
from storage.atomic import write_text
from storage.json_file import write_json

Curves = Mapping[str, Sequence[Point]]
"""Name of a curve -> its points (x, y), such as a training loss over steps."""


def write_report(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str,
    context: Mapping[str, Any],
    projections: Mapping[str, Path] | None = None,
    curves: Curves | None = None,
    panels: Mapping[str, Panel] | None = None,
) -> None:
    """Write the four files into `folder`; each is whole or absent, and none is begun before all are composed.

    Args:
        folder: an existing folder.
        rows: one mapping a model, as `validate_report` asks; the order is the order of the tables.
        title: heading of the pages.
        context: what a reader must know about the run (backbone, seed, command...), plain JSON values.
        projections: name of a row -> its picture, a PNG file. It is linked from the Markdown, and embedded in the HTML
            when there are no panels.
        curves: drawn as small plots in the HTML and kept in the JSON.
        panels: name of a row -> its drawings (see `make_panel`): t-SNE, PCA and distances in the HTML. Their numbers are
            in the JSON that the page saves, not in report.json.

    Raises:
        ValueError: rows or context off the schema (the key is named), a projection or panel of no row, a picture that is
            missing or no PNG. Nothing is written then.
    """
    report: dict[str, Any] = {"rows": list(rows), "context": dict(context)}
    if curves:
        report["curves"] = {name: [list(point) for point in points] for name, points in curves.items()}
    validate_report(report)
    pictures = {name: _png(name, path, rows) for name, path in (projections or {}).items()}
    addresses = {name: Path(os.path.relpath(path, folder)).as_posix() for name, path in (projections or {}).items()}
    for name in panels or {}:
        _check_name("panels", name, rows)
    markdown = markdown_report(rows, title=title, context=context, pictures=addresses)
    page = html_report(report, title=title, pictures=pictures, curves=curves or {}, panels=panels or {})
    table = csv_report(rows)
    write_json(folder / "report.json", report)
    write_text(folder / "report.csv", table)
    write_text(folder / "report.md", markdown)
    write_text(folder / "report.html", page)


def _check_name(argument: str, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    if all(row["name"] != name for row in rows):
        raise ValueError(f"{argument}[{name!r}]: expected the name of a row, got one of none; use the row's name")


def _png(name: str, path: Path, rows: Sequence[Mapping[str, Any]]) -> bytes:
    _check_name("projections", name, rows)
    if not path.is_file():
        raise ValueError(f"projections[{name!r}]: expected a PNG file, got nothing at {path}; draw it first")
    content = path.read_bytes()
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError(f"projections[{name!r}]: expected a PNG file, got other content in {path}; draw it again")
    return content
