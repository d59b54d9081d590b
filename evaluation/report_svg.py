"""What the drawings of the HTML page share: a frame with axes, round marks, labels that keep off each other.

All are inline SVG whose colours come from the page's style.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from evaluation.report_text import number, visible

LETTER = 7.0
"""Mean width of a letter of the labels, in SVG units: enough to keep labels off each other."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A plotting area and the data ranges it shows."""

    width: int
    height: int
    left: int
    bottom: int
    right: int = 16
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        """Horizontal position of a value."""
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        """Vertical position of a value; SVG counts downwards."""
        low, high = self.y_range
        return self.height - self.bottom - (value - low) / (high - low) * (self.height - self.bottom - 14)


def padded(values: Sequence[float]) -> tuple[float, float]:
    """The range of the values with a margin; never empty."""
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.05 * max(abs(high), 1.0)
    return low - margin, high + margin


def ticks(low: float, high: float, most: int = 9) -> list[float]:
    """Round numbers between the ends, about half of `most` to `most`: steps of 1, 2 or 5 times a power of ten.

    Example:
        >>> ticks(0.07, 0.48)
        [0.1, 0.2, 0.3, 0.4]
    """
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def tick_texts(marks: Sequence[float]) -> list[str]:
    """All marks of an axis with as many decimals as the one that needs most."""
    decimals = max((len(f"{value:.10f}".rstrip("0").partition(".")[2]) for value in marks), default=0)
    return [number(value, decimals) for value in marks]


def axes(
    frame: Frame, x_title: str, y_title: str, *, x_marks: Sequence[tuple[float, str]] | None = None, most: int = 9
) -> str:
    """Grid lines with their numbers, and the titles; `x_marks` are places and texts where the axis has its own."""
    right, floor = frame.width - frame.right, frame.height - frame.bottom
    parts = []
    marks = ticks(*frame.y_range, most)
    for value, text in zip(marks, tick_texts(marks), strict=True):
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{frame.left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{frame.left - 8}" y="{y + 4:.1f}">{text}</text>')
    if x_marks is None:
        marks = ticks(*frame.x_range, most)
        x_marks = list(zip(marks, tick_texts(marks), strict=True))
    for value, text in x_marks:
        x = frame.x(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="14" y2="{floor}"/>')
        parts.append(f'<text class="tick mid" x="{x:.1f}" y="{floor + 17}">{text}</text>')
    if x_title:
        parts.append(f'<text class="axis end" x="{right}" y="{frame.height - 8}">{x_title}</text>')
    if y_title:
        parts.append(f'<text class="axis end" transform="translate(14 14) rotate(-90)">{y_title}</text>')
    return "".join(parts)


def placed(spots: Sequence[tuple[float, float]], labels: Sequence[str], frame: Frame) -> list[tuple[float, float]]:
    """Where each label starts: the first of a few places around its point that hits no point and no earlier label."""
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in spots]
    places = []
    for (x, y), label in zip(spots, labels, strict=True):
        w = LETTER * len(label)
        sides = [(x + 10, y + 4), (x - 10 - w, y + 4)]
        stacks = [(x - w / 2, y + dy) for dy in (-11, 20, -26, 35, -41, 50)]
        shifted = [(x + 10, y + dy) for dy in (-9, 17, -22, 30)] + [(x - 10 - w, y + dy) for dy in (-9, 17, -22, 30)]
        options = [
            (tx, ty)
            for tx, ty in sides + shifted + stacks
            if frame.left < tx and tx + w < frame.width and 12 < ty < frame.height - frame.bottom
        ]
        best = min(
            options or sides, key=lambda spot: _overlap((spot[0], spot[1] - 11, spot[0] + w, spot[1] + 3), taken)
        )
        taken.append((best[0], best[1] - 11, best[0] + w, best[1] + 3))
        places.append(best)
    return places


def _overlap(box: tuple[float, float, float, float], others: Sequence[tuple[float, float, float, float]]) -> float:
    """Area that a box shares with others; `min` keeps the first of equal options, so order is preference."""
    return sum(
        max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
        * max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
        for other in others
    )


def svg(frame: Frame, label: str, parts: Sequence[str]) -> str:
    """The drawing, with a text for readers who do not see it."""
    return (
        f'<svg viewBox="0 0 {frame.width} {frame.height}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def wide_and_narrow(wide: str, narrow: str, names: Sequence[str]) -> str:
    """A drawing for a desk, with names in it, and the same for a phone, with numbers and the names below."""
    listed = "".join(f"<li>{escape(visible(name))}</li>" for name in names)
    return (
        f'<div class="card plot wide">{wide}</div>'
        f'<div class="card plot narrow">{narrow}<ol class="keyed">{listed}</ol></div>'
    )
