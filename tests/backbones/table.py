"""The tables of docs/backbones.md, written by ``python -m tests.backbones.table`` and read again by the tests.

The facts are those of BACKBONES; each cell of the second table is what its column's function found on a tiny version.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from transformers.utils import logging

from models.backbones import BACKBONES
from models.quiet import quiet_loading
from storage.atomic import write_text
from tests.backbones import ranks
from tests.backbones.cells import COLUMNS
from tests.backbones.hub_model import HubModel, model_named
from tests.models.hub_folders import NAMES

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "backbones.md"
BEGIN, END = "<!-- tables: made by `make backbones` -->", "<!-- end of the tables -->"
ROWS = tuple(name for name in BACKBONES if name in NAMES)
"""The models of the paper's Table 1, in the order of BACKBONES."""

HEADS = (
    *("load", "pool", "prompt", "causality", "LoRA", "4-bit", "checkpointing", *ranks.COLUMNS),
    *("adapter round trip", "merged round trip", "PEFT load", "SLERP from files"),
)

Cells = dict[str, dict[str, str]]


def measured(hubs: Mapping[str, HubModel], work: Path, *, report: Callable[[str], None]) -> Cells:
    """Every cell of every row; a cell that is neither ``yes`` nor ``no: reason`` says ``FAILED`` and why."""
    on_ranks = ranks.results(list(hubs.values()), work)
    cells: Cells = {}
    for name, hub in hubs.items():
        cells[name] = {}
        for head in HEADS:
            if head in ranks.COLUMNS:
                found = on_ranks[name][head]
                cells[name][head] = found if found == "yes" else f"FAILED {found}"
                continue
            try:
                cells[name][head] = COLUMNS[head](hub)
            except (AssertionError, RuntimeError, ValueError) as error:
                cells[name][head] = f"FAILED {type(error).__name__}: {error}"
        report(f"{name}: {sum(each == 'yes' for each in cells[name].values())} of {len(HEADS)} yes")
    return cells


def facts() -> str:
    """The first table, from BACKBONES alone."""
    heads = ("model", "hub id", "revision", "attention", "pooling", "d", "tokens", "LoRA on", "licence")
    lines = []
    for name in ROWS:
        row = BACKBONES[name]
        pooling = f"{row.pooling}{', unit length' if row.normalize else ''}{'' if row.pools_prompt else ', no prompt'}"
        targets = ", ".join((*row.lora_targets, *row.expert_parameters))
        licence = "; ".join(filter(None, (row.licence, row.licence_terms, "gated" if row.gated else None)))
        tokens = str(row.max_tokens or "by its files")
        revision = f"`{(row.revision or '')[:12]}`"
        lines.append(
            (name, f"`{row.repo_id}`", revision, row.attention, pooling, str(row.dimension), tokens, targets, licence)
        )
    return _table(heads, lines)


def render(cells: Cells) -> str:
    """The second table."""
    return _table(("model", *HEADS), [(name, *(cells[name][head] for head in HEADS)) for name in ROWS])


def read_cells(text: str) -> Cells:
    """The second table of a document, as `render` wrote it."""
    lines = text[text.index(BEGIN) : text.index(END)].splitlines()
    first = lines.index(_line(("model", *HEADS)))
    rows = [
        [part.strip() for part in line.strip("|").split(" | ")] for line in lines[first + 2 :] if line.startswith("|")
    ]
    return {name: dict(zip(HEADS, found, strict=True)) for name, *found in rows}


def with_tables(text: str, cells: Cells) -> str:
    """The document with both tables between its markers."""
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    return f"{before}{BEGIN}\n\n{facts()}\n{render(cells)}\n{after}"


def main() -> int:
    """Write the tables; nothing is written where a cell failed."""
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as folder, quiet_loading():
        hubs = {name: model_named(name, Path(folder)) for name in ROWS}
        cells = measured(hubs, Path(folder), report=lambda line: print(line, flush=True))
    failed = [f"{name}, {head}: {each}" for name in ROWS for head, each in cells[name].items() if each[:6] == "FAILED"]
    if failed:
        print(*failed, sep="\n", file=sys.stderr)
        return 1
    write_text(DOCUMENT, with_tables(DOCUMENT.read_text(encoding="utf-8"), cells))
    return 0


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "".join(f"{_line(each)}\n" for each in (heads, ("---",) * len(heads), *rows))


def _line(parts: tuple[str, ...]) -> str:
    return f"| {' | '.join(parts)} |"


if __name__ == "__main__":
    sys.exit(main())
