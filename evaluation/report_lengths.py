"""The effect of sequence length: one line a model, the silhouette against the number of terms."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from evaluation.report_svg import Frame, axes, padded, svg, wide_and_narrow
from evaluation.report_text import number, shortened, visible

_SPACE = 14.0
"""Least vertical distance of two names at the ends of their lines."""


def lengths_section(rows: Sequence[Mapping[str, Any]]) -> str:
    """The plot, its caption, and why lines have gaps; empty where no row has a length that was measured."""
    wide, narrow = lengths_svg(rows), lengths_svg(rows, narrow=True)
    if not wide:
        return ""
    gaps = "".join(
        f"<li>{terms} terms: {escape(visible(reason))} ({escape(', '.join(names))})</li>"
        for (terms, reason), names in _gaps(rows).items()
    )
    caption = (
        "Silhouette of the true labels against the terms of a sequence (logarithmic). Dashed: the mean of shuffled "
        "labels, the zero to compare with."
    )
    drawn = wide_and_narrow(wide, narrow, [row["name"] for row in rows if _points(row)])
    return (
        '<section id="lengths"><h2>Effect of sequence length</h2>\n'
        f"<figure>{drawn}<figcaption>{caption}</figcaption></figure>"
        + (f'\n<ul class="notes">{gaps}</ul>' if gaps else "")
        + "</section>"
    )


def _gaps(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[int, str], list[str]]:
    """(terms, reason) -> the models that have no number there."""
    found: dict[tuple[int, str], list[str]] = {}
    for row in rows:
        for entry in row.get("lengths") or []:
            if entry["silhouette_true"] is None:
                found.setdefault((entry["terms"], entry["silhouette_true_reason"]), []).append(visible(row["name"]))
    return found


def lengths_svg(rows: Sequence[Mapping[str, Any]], *, narrow: bool = False) -> str:
    """The drawing; empty where no row has a length that was measured. A narrow one bears numbers instead of names."""
    shown = [(row, points) for row in rows if (points := _points(row))]
    if not shown:
        return ""
    terms = sorted({x for _, points in shown for x, _, _ in points})
    heights = [y for _, points in shown for _, *both in points for y in both if y is not None]
    frame = Frame(
        width=400 if narrow else 860,
        height=max(400 if narrow else 440, int(_SPACE * len(shown)) + 80),
        left=60 if narrow else 76,
        bottom=48,
        right=36 if narrow else 190,
        x_range=(math.log(terms[0]) - 0.05, math.log(terms[-1]) + 0.05),
        y_range=padded(heights),
    )
    parts = [axes(frame, "terms in a sequence →", "silhouette →", x_marks=_marks(terms, frame), most=7)]
    for row, points in shown:
        parts += _line(row, points, frame)
    ends = _apart([frame.y(points[-1][1] or 0.0) for _, points in shown], frame)
    for place, ((row, points), y) in enumerate(zip(shown, ends, strict=True)):
        text = str(place + 1) if narrow else escape(shortened(row["name"], 26))
        x = frame.x(math.log(points[-1][0]))
        edge = frame.width - frame.right + 14
        parts.append(
            f'<line class="lead" x1="{x + 4:.1f}" y1="{frame.y(points[-1][1] or 0.0):.1f}" x2="{edge - 3}" y2="{y:.1f}"/>'
        )
        parts.append(f'<text class="name" x="{edge}" y="{y + 4:.1f}">{text}</text>')
    return svg(frame, "Silhouette against sequence length, one line a model", parts)


def _points(row: Mapping[str, Any]) -> list[tuple[int, float | None, float | None]]:
    """(terms, silhouette, mean under shuffled labels), by length; without gaps at the two ends."""
    found = [
        (entry["terms"], _float(entry["silhouette_true"]), _float((entry.get("null") or {}).get("mean")))
        for entry in row.get("lengths") or []
        if entry["terms"] > 0
    ]
    found.sort(key=lambda point: point[0])
    known = [place for place, (_, value, _) in enumerate(found) if value is not None]
    return found[known[0] : known[-1] + 1] if known else []


def _float(value: int | float | None) -> float | None:
    return None if value is None else float(value)


def _line(
    row: Mapping[str, Any], points: Sequence[tuple[int, float | None, float | None]], frame: Frame
) -> Iterator[str]:
    for index, name in ((2, "line null"), (1, "line")):
        places = [(math.log(point[0]), point[index]) for point in points]
        for run in _runs([(x, y) for x, y in places]):
            path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in run)
            yield f'<polyline class="{name} s-{row["family"]}" points="{path}"/>'
    for terms, value, _ in points:
        if value is not None:
            tip = escape(f"{visible(row['name'])}: {terms} terms, silhouette {number(value, 3)}")
            x, y = frame.x(math.log(terms)), frame.y(value)
            yield f'<circle class="dot f-{row["family"]}" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{tip}</title></circle>'


def _runs(points: Sequence[tuple[float, float | None]]) -> Iterator[list[tuple[float, float]]]:
    """The stretches between gaps."""
    run: list[tuple[float, float]] = []
    for x, y in points:
        if y is not None:
            run.append((x, y))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _marks(terms: Sequence[int], frame: Frame) -> list[tuple[float, str]]:
    """The lengths themselves, those that would touch their left neighbour left out."""
    marks: list[tuple[float, str]] = []
    for count in terms:
        if not marks or frame.x(math.log(count)) - frame.x(marks[-1][0]) > 28:
            marks.append((math.log(count), str(count)))
    return marks


def _apart(heights: Sequence[float], frame: Frame) -> list[float]:
    """The heights, moved as little as keeps them `_SPACE` apart: downwards in order, then up from the floor."""
    order = sorted(range(len(heights)), key=lambda place: heights[place])
    moved = [heights[place] for place in order]
    for place in range(1, len(moved)):
        moved[place] = max(moved[place], moved[place - 1] + _SPACE)
    floor = float(frame.height - frame.bottom)
    for place in reversed(range(len(moved))):
        moved[place] = min(moved[place], floor)
        floor = moved[place] - _SPACE
    result = [0.0] * len(heights)
    for place, height in zip(order, moved, strict=True):
        result[place] = height
    return result
