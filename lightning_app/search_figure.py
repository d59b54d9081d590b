"""The picture of a search: what each merge separates against what it retains, the front, the floor, the choice."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lightning_app.search_record import SEPARATION, SearchRecord
from merging.front import Candidate

# Okabe & Ito's colours, told apart with any common colour vision
GREY, BLUE, RED, GREEN = "#999999", "#0072B2", "#D55E00", "#009E73"


def search_figure(record: SearchRecord) -> Figure:
    """Every candidate as a point; the line is the largest separation to be had at each floor.

    It is a plain ``matplotlib.figure.Figure`` on the Agg canvas, unknown to pyplot, so nothing has to be closed.
    """
    figure = Figure(figsize=(6.4, 4.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    best = record.front
    axes.axvspan(-2, record.floor, color=GREY, alpha=0.12, lw=0, label=f"below the floor {record.floor:g}")
    _points(axes, record.candidates, "a merge", marker="o", s=22, color=GREY)
    # The value at a front point holds from the one before it: a floor between the two is met by the right one.
    axes.plot([c.retention for c in best], [c.separation for c in best], drawstyle="steps-pre", color=BLUE, lw=1)
    _points(axes, best, "the front", marker="o", s=26, color=BLUE)
    ends = [candidate for candidate in record.candidates if candidate.parameters.is_end]
    _points(axes, ends, "an input by itself", marker="s", s=52, facecolors="none", edgecolors=GREEN, linewidths=1.4)
    if record.chosen is not None:
        _points(axes, [record.chosen], f"chosen: {record.chosen.parameters}", marker="*", s=170, color=RED)
    for end in ends:
        axes.annotate(
            str(end.parameters),
            (end.retention, end.separation),
            xytext=(6, 6),
            textcoords="offset points",
            fontsize=8,
            color=GREEN,
        )
    low, high = _limits([candidate.retention for candidate in record.candidates] + [record.floor])
    axes.set_xlim(low, high)
    axes.set_xlabel(f"retention: {record.retention}")
    axes.set_ylabel(f"separation: {SEPARATION}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="best")
    return figure


def _points(axes: Axes, candidates: Sequence[Candidate], label: str, **style: Any) -> None:
    retained = [candidate.retention for candidate in candidates]
    axes.scatter(retained, [candidate.separation for candidate in candidates], label=label, zorder=3, **style)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    margin = 0.06 * (max(values) - min(values)) or 0.05
    return min(values) - margin, max(values) + margin
