"""Small plots of what went on in training, such as a loss over steps."""

from collections.abc import Mapping, Sequence
from html import escape

from evaluation.report_svg import Frame, axes, padded, svg
from evaluation.report_text import one_line, visible

Point = tuple[int | float, int | float]
"""(x, y) of a curve, such as (step, loss)."""


def curves_section(curves: Mapping[str, Sequence[Point]]) -> str:
    """All curves as cards; empty where none has two points."""
    drawn = [(name, curve_svg(name, points)) for name, points in curves.items()]
    cards = "".join(
        f'<figure class="card">{svg}<figcaption>{escape(visible(name))}</figcaption></figure>'
        for name, svg in drawn
        if svg
    )
    return f'<section id="training"><h2>Training</h2>\n<div class="cards">{cards}</div></section>' if cards else ""


def curve_svg(name: str, points: Sequence[Point]) -> str:
    """One curve; empty below two points."""
    if len(points) < 2:
        return ""
    xs, ys = [float(x) for x, _ in points], [float(y) for _, y in points]
    low, high = min(xs), max(xs)
    x_range = (low, high) if high > low else (low - 0.5, high + 0.5)
    frame = Frame(width=380, height=220, left=52, bottom=26, x_range=x_range, y_range=padded(ys))
    line = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in zip(xs, ys, strict=True))
    return svg(frame, one_line(name), [axes(frame, "", "", most=6), f'<polyline class="curve" points="{line}"/>'])
