"""The drawings of the HTML page, as inline SVG whose colours come from the page's style."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from evaluation.report_columns import number, one_line

Point = tuple[int | float, int | float]
"""(x, y) of a curve, such as (step, loss)."""

_LETTER = 6.4
"""Mean width of a letter of the labels, in SVG units: enough to keep labels off each other."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A plotting area and the data ranges it shows."""

    width: int
    height: int
    left: int
    bottom: int
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        """Horizontal position of a value."""
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.width - self.left - 16)

    def y(self, value: float) -> float:
        """Vertical position of a value; SVG counts downwards."""
        low, high = self.y_range
        return self.height - self.bottom - (value - low) / (high - low) * (self.height - self.bottom - 14)


def tradeoff_svg(rows: Sequence[Mapping[str, Any]]) -> str:
    """Separation (silhouette of the large suite) against retention (CKA to the base); empty below two such rows."""
    points = [
        (row, float(row["retention"]["cka"]), float(row["suites"]["large"]["silhouette_true"]))
        for row in rows
        if _drawn(row)
    ]
    if len(points) < 2:
        return ""
    frame = Frame(
        width=760,
        height=430,
        left=76,
        bottom=48,
        x_range=_padded([x for _, x, _ in points]),
        y_range=_padded([y for _, _, y in points]),
    )
    parts = [_axes(frame, "kept of the base: CKA on the broad suite →", "separation: silhouette of the large suite →")]
    base = next((p for p in points if p[0]["family"] == "base"), None)
    final = next((p for p in reversed(points) if p[0]["family"] == "lora"), None)
    if base and final:
        ends = [(frame.x(x), frame.y(y)) for _, x, y in (base, final)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in ends)
        parts.append(f'<polyline class="path" points="{path}"/>')
    spots = [(frame.x(x), frame.y(y)) for _, x, y in points]
    labels = [_shortened(row["name"]) for row, _, _ in points]
    anchors = _placed(spots, labels, frame)
    for (row, x, y), (px, py), label, (tx, ty) in zip(points, spots, labels, anchors, strict=True):
        tip = escape(f"{one_line(row['name'])}: CKA {number(x, 3)}, silhouette {number(y, 3)}")
        dot = f'<circle class="dot f-{row["family"]}" cx="{px:.1f}" cy="{py:.1f}" r="5.5"><title>{tip}</title></circle>'
        parts.append(f'{dot}<text class="name" x="{tx:.1f}" y="{ty:.1f}">{escape(label)}</text>')
    return _svg(frame, "Separation against retention, one point a model", parts)


def curve_svg(name: str, points: Sequence[Point]) -> str:
    """One curve, such as a loss over steps; empty below two points."""
    if len(points) < 2:
        return ""
    xs, ys = [float(x) for x, _ in points], [float(y) for _, y in points]
    low, high = min(xs), max(xs)
    x_range = (low, high) if high > low else (low - 0.5, high + 0.5)
    frame = Frame(width=380, height=220, left=52, bottom=26, x_range=x_range, y_range=_padded(ys))
    line = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in zip(xs, ys, strict=True))
    return _svg(frame, one_line(name), [_axes(frame, "", ""), f'<polyline class="curve" points="{line}"/>'])


def _drawn(row: Mapping[str, Any]) -> bool:
    suite = row["suites"].get("large")
    kept = row["retention"]
    return bool(suite and kept) and suite["silhouette_true"] is not None and kept["cka"] is not None


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.05 * max(abs(high), 1.0)
    return low - margin, high + margin


def ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers between the ends: steps of 1, 2 or 5 times a power of ten.

    Example:
        >>> ticks(0.07, 0.48)
        [0.1, 0.2, 0.3, 0.4]
    """
    rough = (high - low) / 8
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _axes(frame: Frame, x_title: str, y_title: str) -> str:
    right, floor = frame.width - 16, frame.height - frame.bottom
    parts = []
    marks = ticks(*frame.y_range)
    for value, text in zip(marks, _tick_texts(marks), strict=True):
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{frame.left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{frame.left - 8}" y="{y + 4:.1f}">{text}</text>')
    marks = ticks(*frame.x_range)
    for value, text in zip(marks, _tick_texts(marks), strict=True):
        x = frame.x(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="14" y2="{floor}"/>')
        parts.append(f'<text class="tick mid" x="{x:.1f}" y="{floor + 17}">{text}</text>')
    if x_title:
        parts.append(f'<text class="axis end" x="{right}" y="{frame.height - 8}">{x_title}</text>')
    if y_title:
        parts.append(f'<text class="axis end" transform="translate(14 14) rotate(-90)">{y_title}</text>')
    return "".join(parts)


def _tick_texts(marks: Sequence[float]) -> list[str]:
    """All marks of an axis with as many decimals as the one that needs most."""
    decimals = max((len(f"{value:.10f}".rstrip("0").partition(".")[2]) for value in marks), default=0)
    return [number(value, decimals) for value in marks]


def _placed(spots: Sequence[tuple[float, float]], labels: Sequence[str], frame: Frame) -> list[tuple[float, float]]:
    """Where each label starts: the first of a few places around its point that hits no point and no earlier label."""
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in spots]
    placed = []
    for (x, y), label in zip(spots, labels, strict=True):
        w = _LETTER * len(label)
        sides = [(x + 10, y + 4), (x - 10 - w, y + 4)]
        stacks = [(x - w / 2, y + dy) for dy in (-11, 20, -26, 35, -41, 50)]
        shifted = [(x + 10, y + dy) for dy in (-9, 17, -22, 30)] + [(x - 10 - w, y + dy) for dy in (-9, 17, -22, 30)]
        options = [
            (tx, ty) for tx, ty in sides + shifted + stacks if frame.left < tx and tx + w < frame.width and ty > 12
        ]
        best = min(
            options or sides, key=lambda spot: _overlap((spot[0], spot[1] - 11, spot[0] + w, spot[1] + 3), taken)
        )
        taken.append((best[0], best[1] - 11, best[0] + w, best[1] + 3))
        placed.append(best)
    return placed


def _overlap(box: tuple[float, float, float, float], others: Sequence[tuple[float, float, float, float]]) -> float:
    """Area that a box shares with others; `min` keeps the first of equal options, so order is preference."""
    return sum(
        max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
        * max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
        for other in others
    )


def _shortened(name: str) -> str:
    text = one_line(name)
    return text if len(text) <= 30 else text[:29] + "…"


def _svg(frame: Frame, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {frame.width} {frame.height}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )
