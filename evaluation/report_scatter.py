"""The texts of one model in the plane, as a drawing that names each text when it is pointed at.

Dimension names:
    n: texts
"""

from collections.abc import Sequence
from html import escape

import numpy as np
from jaxtyping import Float64

from evaluation.report_panels import Panel
from evaluation.report_text import shortened

_SIZE, _EDGE = 240, 12
COLOURS = 8
"""Classes c0 to c7 of the page's style."""
SHAPES = (
    "M-4.5 0A4.5 4.5 0 1 0 4.5 0A4.5 4.5 0 1 0-4.5 0Z",
    "M-4-4H4V4H-4Z",
    "M0-5L4.8 3.6H-4.8Z",
    "M0-5.4L5.4 0L0 5.4L-5.4 0Z",
    "M0 5L4.8-3.6H-4.8Z",
    "M-1.7-5H1.7V-1.7H5V1.7H1.7V5H-1.7V1.7H-5V-1.7H-1.7Z",
    "M-5-2.6L-2.6-5L0-2.4L2.6-5L5-2.6L2.4 0L5 2.6L2.6 5L0 2.4L-2.6 5L-5 2.6L-2.4 0Z",
)


def shapes_svg() -> str:
    """The marks, once for the whole page; the drawings refer to them."""
    marks = "".join(f'<path id="m{place}" d="{path}"/>' for place, path in enumerate(SHAPES))
    return f'<svg class="marks" width="0" height="0" aria-hidden="true"><defs>{marks}</defs></svg>'


def scatter_svg(plane: Float64[np.ndarray, "n 2"], panel: Panel, label: str, *, name: str) -> str:
    """One point a text, equal units on both axes; `name` is the id under which the points can be used again."""
    inner = _SIZE - 2 * _EDGE
    low, high = plane.min(axis=0), plane.max(axis=0)
    unit = inner / (float((high - low).max()) or 1.0)
    middle = (low + high) / 2
    codes = family_codes(panel.labels)
    points = []
    for (x, y), family, text in zip(plane.tolist(), panel.labels, panel.texts, strict=True):
        left = _SIZE / 2 + (x - middle[0]) * unit
        top = _SIZE / 2 - (y - middle[1]) * unit
        tip = escape(f"{shortened(family, 28)}: {text}")
        points.append(f"{_mark(codes[family], left, top)}<title>{tip}</title></use>")
    return _square(f'<g id="{name}">{"".join(points)}</g>', label)


def repeated_svg(name: str, label: str) -> str:
    """A drawing again, by its id."""
    return _square(f'<use href="#{name}"/>', label)


def legend(labels: Sequence[str]) -> str:
    """Which mark is which family."""
    items = (
        f'<span><svg viewBox="-7 -7 14 14" width="14" height="14" aria-hidden="true">{_mark(code, 0.0, 0.0)}</use></svg>'
        f"<bdi>{escape(shortened(family, 28))}</bdi></span>"
        for family, code in family_codes(labels).items()
    )
    return f'<p class="legend">{"".join(items)}</p>'


def family_codes(labels: Sequence[str]) -> dict[str, int]:
    """Families in order of first appearance."""
    return {family: code for code, family in enumerate(dict.fromkeys(labels))}


def _mark(code: int, x: float, y: float) -> str:
    return f'<use href="#m{code % len(SHAPES)}" class="c{code % COLOURS}" x="{x:.1f}" y="{y:.1f}">'


def _square(content: str, label: str) -> str:
    return f'<svg class="plane" viewBox="0 0 {_SIZE} {_SIZE}" role="img" aria-label="{escape(label)}">{content}</svg>'
