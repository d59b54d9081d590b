"""The paper's two figures: Silhouette and Davies-Bouldin of every model, by the true and by the KMeans labels.

Each row is a drawing of its own whose positions are percentages, so that bars stretch and letters do not. What chance
gives is drawn into the bars, and so are intervals and seeds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import median
from typing import Any

from evaluation.report_style import kind_of
from evaluation.report_svg import tick_texts, ticks
from evaluation.report_text import number, visible

_FAR = 3.0
"""A bar is cut off where it passes this many medians: one baseline at 33 must not flatten every model at 2."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One of the two figures."""

    name: str
    """Heading."""
    key: str
    """The columns are ``<key>_true`` and ``<key>_kmeans``."""
    decimals: int
    """Digits after the point."""
    hint: str
    """Which end is better."""
    chance_end: str
    """The end of the Gaussian null that a KMeans bar must pass: ``high`` or ``low``."""


SILHOUETTE = Measure(
    name="Silhouette", key="silhouette", decimals=3, hint="Higher is better; zero is not the null.", chance_end="high"
)
DAVIES_BOULDIN = Measure(
    name="Davies–Bouldin", key="davies_bouldin", decimals=2, hint="Lower is better.", chance_end="low"
)


def bars_section(rows: Sequence[Mapping[str, Any]]) -> str:
    """Both figures; empty where no row has a number."""
    figures = [bars_figure(rows, measure) for measure in (SILHOUETTE, DAVIES_BOULDIN)]
    if not any(figures):
        return ""
    return (
        '<section id="figures"><h2>The two figures of the paper</h2>\n'
        '<p class="legend"><span><i class="swatch true"></i>true labels</span>'
        '<span><i class="swatch found"></i>KMeans labels</span>'
        '<span><i class="swatch hollow"></i>published, not measured here</span>'
        '<span><i class="swatch band"></i>shuffled labels, ±2 sd</span>'
        '<span><i class="swatch gauss"></i>Gaussian cloud, 97.5 %</span>'
        '<span><i class="swatch whisk"></i>95 % interval; on KMeans bars the range over seeds</span></p>\n'
        f'<div class="pair">{"".join(figures)}</div></section>'
    )


def bars_figure(rows: Sequence[Mapping[str, Any]], measure: Measure) -> str:
    """One figure, a row a model in the order of the table; empty where no row has its number."""
    keys = (f"{measure.key}_true", f"{measure.key}_kmeans")
    values = [float(row[key]) for row in rows for key in keys if row[key] is not None]
    if not values:
        return ""
    scale = _Scale.of(rows, measure, values)
    lines = "".join(_row(row, measure, scale) for row in rows)
    cut = f" Bars with an arrow end beyond {number(scale.high, 1)}." if max(values) > scale.high else ""
    return (
        f'<figure class="bars card"><figcaption><b>{measure.name}</b> {measure.hint}{cut}</figcaption>\n'
        f'<div class="bar axis-row"><span></span><svg height="18" aria-hidden="true">{scale.axis()}</svg>'
        f"<span>true · KMeans</span></div>\n{lines}</figure>"
    )


@dataclass(frozen=True)
class _Scale:
    """The common axis of a figure; places are percentages of its width."""

    low: float
    high: float

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], measure: Measure, values: Sequence[float]) -> "_Scale":
        far = _FAR * median(values) if measure is DAVIES_BOULDIN else max(values)
        near = [value for value in values if value <= far] or list(values)
        ends = [0.0, *near, *(end for row in rows for end in _marked(row, measure))]
        low, high = min(ends), max(ends)
        margin = 0.03 * (high - low) or 0.5
        return cls(low - margin if low < 0 else 0.0, high + margin)

    def place(self, value: float) -> float:
        return 100 * (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)

    def axis(self) -> str:
        marks = ticks(self.low, self.high, 7)
        return "".join(
            f'<text class="tick mid" x="{self.place(mark):.2f}%" y="13">{text}</text>'
            for mark, text in zip(marks, tick_texts(marks), strict=True)
        )

    def grid(self) -> str:
        marks = ticks(self.low, self.high, 7)
        return "".join(_upright(self.place(mark), 0, 30, "zero" if mark == 0 else "grid") for mark in marks)


def _marked(row: Mapping[str, Any], measure: Measure) -> Iterator[float]:
    """Ends of what is drawn beside the bars, so that it fits."""
    if measure is SILHOUETTE:
        yield from _interval(row) or ()
        if band := _band(row):
            yield band[0] - 2 * band[1]
            yield band[0] + 2 * band[1]
    yield from _seeds(row, measure) or ()
    chance = _chance(row, measure)
    if chance is not None:
        yield chance


def _row(row: Mapping[str, Any], measure: Measure, scale: _Scale) -> str:
    true, found = _number(row, f"{measure.key}_true"), _number(row, f"{measure.key}_kmeans")
    parts = [scale.grid(), _bar(true, 4, 10, f"f-{row['family']}", scale)]
    parts.append(_bar(found, 16, 10, f"f-{row['family']} found", scale))
    if measure is SILHOUETTE:
        if band := _band(row):
            parts.append(_span(band[0] - 2 * band[1], band[0] + 2 * band[1], 3, 12, "band", scale))
            parts.append(_upright(scale.place(band[0]), 2, 16, "chance"))
        parts.append(_whisker(_interval(row), 9, scale))
    parts.append(_whisker(_seeds(row, measure), 21, scale))
    chance = _chance(row, measure)
    if chance is not None:
        parts.append(_upright(scale.place(chance), 15, 27, "gauss"))
    name = escape(visible(row["name"]))
    texts = [number(value, measure.decimals) for value in (true, found)]
    tip = f"{name}: {measure.name} {texts[0]} by the true labels, {texts[1]} by KMeans"
    sums = '<em class="bad">failed</em>' if row.get("error") else " · ".join(texts)
    return (
        f'<div class="bar {kind_of(row)}"><span class="who" title="{name}"><bdi>{name}</bdi></span>'
        f'<svg height="30" role="img" aria-label="{tip}"><title>{tip}</title>{"".join(parts)}</svg>'
        f'<span class="sums">{sums}</span></div>\n'
    )


def _bar(value: float | None, top: int, height: int, names: str, scale: _Scale) -> str:
    if value is None:
        return ""
    bar = _span(0.0, value, top, height, f"mark {names}", scale)
    arrow = f'<text class="beyond" x="99.5%" y="{top + 9}">›</text>' if value > scale.high else ""
    return bar + arrow


def _span(start: float, end: float, top: int, height: int, names: str, scale: _Scale) -> str:
    left, right = sorted((scale.place(start), scale.place(end)))
    return f'<rect class="{names}" x="{left:.2f}%" y="{top}" width="{right - left:.2f}%" height="{height}"/>'


def _upright(place: float, top: int, bottom: int, names: str) -> str:
    return f'<line class="{names}" x1="{place:.2f}%" x2="{place:.2f}%" y1="{top}" y2="{bottom}"/>'


def _whisker(ends: tuple[float, float] | None, y: int, scale: _Scale) -> str:
    if ends is None:
        return ""
    low, high = (scale.place(end) for end in ends)
    line = f'<line class="whisker" x1="{low:.2f}%" x2="{high:.2f}%" y1="{y}" y2="{y}"/>'
    return line + _upright(low, y - 3, y + 3, "whisker") + _upright(high, y - 3, y + 3, "whisker")


def _number(row: Mapping[str, Any], *path: str) -> float | None:
    value: Any = row
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return None if value is None else float(value)


def _pair(row: Mapping[str, Any], path: Sequence[str], first: str, second: str) -> tuple[float, float] | None:
    values = _number(row, *path, first), _number(row, *path, second)
    return None if values[0] is None or values[1] is None else (values[0], values[1])


def _band(row: Mapping[str, Any]) -> tuple[float, float] | None:
    return _pair(row, ["null"], "mean", "sd")


def _interval(row: Mapping[str, Any]) -> tuple[float, float] | None:
    return _pair(row, ["interval"], "low", "high")


def _seeds(row: Mapping[str, Any], measure: Measure) -> tuple[float, float] | None:
    return _pair(row, ["kmeans_spread", measure.key], "low", "high")


def _chance(row: Mapping[str, Any], measure: Measure) -> float | None:
    return _number(row, "null_kmeans", measure.key, measure.chance_end)
