"""What a search leaves behind: every candidate as CSV, a picture of the front, an entry of merge.json, a table."""

import csv
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from merging.front import Candidate, Parameters, front, meets
from storage.atomic import write_bytes, write_text

CSV = "search.csv"
PNG = "search.png"
COLUMNS = ("evaluation", "t", "weights", "separation", "retention", "on_front", "chosen")
SEPARATION = "silhouette of the selection suite"


@dataclass(frozen=True, kw_only=True)
class SearchRecord:
    """A finished search."""

    candidates: tuple[Candidate, ...]
    """In the order they were scored."""
    chosen: Candidate | None
    """None if no candidate reaches the floor."""
    floor: float
    strategy: str
    seed: int
    base: str
    """What retention was measured against, as it was given."""
    suite: str = "broad"
    """On which suite retention was measured."""

    @property
    def retention(self) -> str:
        """What the retention of a candidate is."""
        return f"debiased CKA with the base on the {self.suite} suite"

    @property
    def front(self) -> list[Candidate]:
        return front(self.candidates)


def entry_of(record: SearchRecord) -> dict[str, Any]:
    """The entry ``search`` of merge.json: how the parameters were found, and the front."""
    assert record.chosen is not None, "only a search that found something is written"
    return {
        "separation": SEPARATION,
        "retention": record.retention,
        "base": record.base,
        "floor": record.floor,
        "strategy": record.strategy,
        "seed": record.seed,
        "evaluations": len(record.candidates),
        "chosen": _plain(record.chosen),
        "front": [_plain(candidate) for candidate in record.front],
        "candidates": CSV,
    }


def write_files(record: SearchRecord, folder: Path) -> None:
    """Write search.csv and search.png into ``folder``."""
    # matplotlib and scikit-learn take a second to import; --help never pays for them
    from evaluation.projection import figure_png
    from lightning_app.search_figure import search_figure

    write_text(folder / CSV, csv_of(record))
    write_bytes(folder / PNG, figure_png(search_figure(record)))


def csv_of(record: SearchRecord) -> str:
    """All candidates, one a line; several knots or weights are separated by spaces, and what does not apply is empty."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    best = record.front
    for number, candidate in enumerate(record.candidates, 1):
        row = (number, *_cells(candidate.parameters), candidate.separation, candidate.retention)
        writer.writerow((*row, str(candidate in best).lower(), str(candidate == record.chosen).lower()))
    return text.getvalue()


def show_front(record: SearchRecord) -> None:
    """The front as a table on stderr; the chosen candidate has a star."""
    table = Table(title=f"the front of {len(record.candidates)} candidates", title_justify="left")
    for heading in ("merge", "separation", "retention", ""):
        table.add_column(heading, justify="right" if heading in ("separation", "retention") else "left")
    for candidate in record.front:
        mark = "*" if candidate == record.chosen else "" if meets(candidate, record.floor) else "below the floor"
        table.add_row(str(candidate.parameters), f"{candidate.separation:.4f}", f"{candidate.retention:.4f}", mark)
    Console(stderr=True).print(table)


def _cells(parameters: Parameters) -> tuple[str, str]:
    return " ".join(map(repr, parameters.t)), " ".join(map(repr, parameters.weights))


def _plain(candidate: Candidate) -> dict[str, Any]:
    place = candidate.parameters
    told = {"t": list(place.t)} if place.t else {"weights": list(place.weights)}
    return {**told, "separation": candidate.separation, "retention": candidate.retention}
