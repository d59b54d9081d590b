"""Tables of the page in Markdown, and what stands in their cells."""

from collections.abc import Iterable, Sequence

from benchmarks.result import Result

Row = Sequence[str]


def table(columns: Row, rows: Iterable[Row]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows))


def ratio_cell(result: Result) -> str:
    if result.ratio is None:
        return "-"
    return f"{result.ratio:.2f}" if result.ratio >= 0.1 else f"{result.ratio:.2g}"


def goal_cell(goal: float | None) -> str:
    return "-" if goal is None else f"{goal:.3g}"


def megabytes(size: int) -> str:
    return f"{size / 1e6:.0f}"
