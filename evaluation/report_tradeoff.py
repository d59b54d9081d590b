"""Separation against retention: what an adaptation or a merge gains, and what it gives up."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from evaluation.report_svg import Frame, axes, padded, placed, svg, wide_and_narrow
from evaluation.report_text import number, shortened, visible

_NAME = 30


def tradeoff_section(rows: Sequence[Mapping[str, Any]]) -> str:
    """The plot with its caption; empty where fewer than two models have both numbers."""
    wide, narrow = tradeoff_svg(rows), tradeoff_svg(rows, narrow=True)
    if not wide:
        return ""
    caption = "Up is better separated, right is closer to the base."
    if 'class="whisker"' in wide:
        caption += " Whiskers are 95 % intervals."
    if 'class="path"' in wide:
        caption += (
            " The dashed line joins the base to the last adapter: a merge is of interest where it lies above the line."
        )
    drawn = wide_and_narrow(wide, narrow, [row["name"] for row in rows if _drawn(row)])
    return (
        '<section id="tradeoff"><h2>Separation against retention</h2>\n'
        f"<figure>{drawn}<figcaption>{caption}</figcaption></figure></section>"
    )


def tradeoff_svg(rows: Sequence[Mapping[str, Any]], *, narrow: bool = False) -> str:
    """Silhouette of the large suite against CKA to the base; empty below two such rows.

    A narrow one bears numbers instead of names.
    """
    points = [
        (row, float(row["retention"]["cka"]), float(row["suites"]["large"]["silhouette_true"]))
        for row in rows
        if _drawn(row)
    ]
    if len(points) < 2:
        return ""
    ends = [end for row, _, _ in points for end in _interval(row)]
    frame = Frame(
        width=400 if narrow else 860,
        height=400 if narrow else 460,
        left=60 if narrow else 76,
        bottom=48,
        x_range=padded([x for _, x, _ in points]),
        y_range=padded([y for _, _, y in points] + ends),
    )
    parts = [
        axes(frame, "kept of the base: CKA, broad →", "separation: silhouette, large →", most=6 if narrow else 9),
        _path(points, frame),
    ]
    spots = [(frame.x(x), frame.y(y)) for _, x, y in points]
    texts = [str(i + 1) if narrow else shortened(row["name"], _NAME) for i, (row, _, _) in enumerate(points)]
    anchors = placed(spots, texts, frame)
    # names first: their halo must hide no point
    for text, (tx, ty) in zip(texts, anchors, strict=True):
        parts.append(f'<text class="name" x="{tx:.1f}" y="{ty:.1f}">{escape(text)}</text>')
    for (row, x, y), (px, py) in zip(points, spots, strict=True):
        if (interval := _interval(row)) != ():
            low, high = (frame.y(end) for end in interval)
            parts.append(f'<line class="whisker" x1="{px:.1f}" x2="{px:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
        tip = escape(f"{visible(row['name'])}: CKA {number(x, 3)}, silhouette {number(y, 3)}")
        parts.append(
            f'<circle class="dot f-{row["family"]}" cx="{px:.1f}" cy="{py:.1f}" r="5.5"><title>{tip}</title></circle>'
        )
    return svg(frame, "Separation against retention, one point a model", parts)


def _path(points: Sequence[tuple[Mapping[str, Any], float, float]], frame: Frame) -> str:
    base = next((p for p in points if p[0]["family"] == "base"), None)
    final = next((p for p in reversed(points) if p[0]["family"] == "lora"), None)
    if not base or not final:
        return ""
    ends = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for _, x, y in (base, final))
    return f'<polyline class="path" points="{ends}"/>'


def _drawn(row: Mapping[str, Any]) -> bool:
    suite = row["suites"].get("large")
    kept = row["retention"]
    return bool(suite and kept) and suite["silhouette_true"] is not None and kept["cka"] is not None


def _interval(row: Mapping[str, Any]) -> tuple[float, float] | tuple[()]:
    interval = row["suites"]["large"].get("interval")
    if not interval or interval["low"] is None or interval["high"] is None:
        return ()
    return float(interval["low"]), float(interval["high"])
