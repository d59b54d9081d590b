"""What a run says on the terminal, besides Lightning's own."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table


@rank_zero_only
def announce(message: str) -> None:
    """One line on stderr, so that stdout stays free for --json."""
    Console(stderr=True, highlight=False).print(message, markup=False, soft_wrap=True)


@rank_zero_only
def show_rows(rows: Sequence[Mapping[str, Any]], *, title: str) -> None:
    """The report's main columns as a table on stderr; silhouette and DBI on the paper's 24, then the silhouette of each suite.

    Rows that were not measured are in the report only.
    """
    rows = [row for row in rows if row["source"] == "measured"]
    # narrow enough for 80 characters: the names of a run, four numbers and three suites
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, pad_edge=False)
    suites = list(dict.fromkeys(name for row in rows for name in row["suites"] if not name.endswith("_reason")))
    for heading in ("model", "silh.", "z", "DBI", *suites, "CKA", "kNN"):
        table.add_column(heading, justify="left" if heading == "model" else "right", overflow="fold")
    for row in rows:
        retention = row["retention"] or {}
        table.add_row(
            escape(_shortened(row["name"])),
            _shown(row["silhouette_true"]),
            _shown((row["null"] or {}).get("z"), 1),
            _shown(row["davies_bouldin_true"], 2),
            *(_shown((row["suites"].get(name) or {}).get("silhouette_true")) for name in suites),
            _shown(retention.get("cka")),
            _shown(retention.get("knn")),
        )
    Console(stderr=True).print(table)


def _shortened(name: str, length: int = 17) -> str:
    """A long name is often a path, whose end tells most."""
    return name if len(name) <= length else f"…{name[1 - length :]}"


def _shown(value: float | None, decimals: int = 3) -> str:
    return "–" if value is None else f"{value:.{decimals}f}"
