"""Every cell of the table in docs/backbones.md is what its column's function finds, and can find something else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.backbones import cells, ranks, table
from tests.backbones.hub_model import HubModel

AGAIN = ("qwen3-4b", "qwen3-8b", "gte-qwen2-7b")
"""Rows whose class and files are those of a smaller model."""

ROWS = [pytest.param(name, marks=[pytest.mark.slow] if name in AGAIN else []) for name in table.ROWS]


@pytest.fixture(scope="session")
def written() -> table.Cells:
    return table.read_cells(table.DOCUMENT.read_text(encoding="utf-8"))


@pytest.mark.parametrize("column", cells.COLUMNS)
@pytest.mark.parametrize("name", ROWS)
def test_cell(name: str, column: str, hub_named: Callable[[str], HubModel], written: table.Cells) -> None:
    assert cells.COLUMNS[column](hub_named(name)) == written[name][column]


@pytest.mark.parametrize("again", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_cells_of_two_ranks(
    again: bool, hub_named: Callable[[str], HubModel], written: table.Cells, tmp_path: Path
) -> None:
    names = [name for name in table.ROWS if (name in AGAIN) == again]
    found = ranks.results([hub_named(name) for name in names], tmp_path)
    assert found == {name: {column: written[name][column] for column in ranks.COLUMNS} for name in names}


def test_the_document_has_the_facts_of_the_rows_and_a_cell_for_every_model_and_column(written: table.Cells) -> None:
    text = table.DOCUMENT.read_text(encoding="utf-8")
    assert table.with_tables(text, written) == text
    assert len(table.ROWS) == 14
    assert set(table.HEADS) == {*cells.COLUMNS, *ranks.COLUMNS}
    every = [each for row in written.values() for each in row.values()]
    assert all(each == "yes" or each.startswith("no: ") for each in every), sorted(set(every))


@pytest.mark.parametrize("column", ["pool", "causality"])
def test_a_model_without_its_mask_is_refused(column: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = table.model_named("qwen3-0.6b", tmp_path)
    monkeypatch.setattr(hub, "load", partial(hub.load, bidirectional=True))
    with pytest.raises(AssertionError):
        cells.COLUMNS[column](hub)


@pytest.mark.parametrize(
    ("column", "part"),
    [("adapter round trip", "stage"), ("merged round trip", "passthrough"), ("SLERP from files", "slerp")],
)
def test_other_numbers_in_a_written_folder_are_refused(column: str, part: str, tmp_path: Path) -> None:
    hub = table.model_named("qwen3-0.6b", tmp_path)
    assert cells.COLUMNS[column](hub) == "yes"
    for file in (hub.work / part).glob("*.safetensors"):
        save_file({name: 1.01 * each for name, each in load_file(file).items()}, file, metadata={"format": "pt"})
    with pytest.raises((AssertionError, ValueError)):
        cells.COLUMNS[column](hub)


def test_blocks_that_are_not_computed_again_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "checkpoint_blocks", lambda embedder: 2)
    with pytest.raises(AssertionError):
        cells.checkpointing(table.model_named("qwen3-0.6b", tmp_path))


def test_a_layer_that_trains_without_a_gradient_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = table.model_named("qwen3-0.6b", tmp_path)
    next(each for name, each in hub.trained.named_parameters() if "q_proj.lora_A" in name).grad = None
    with pytest.raises(AssertionError, match="q_proj"):
        cells.lora(hub)
