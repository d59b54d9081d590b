"""What every report is made of besides its rows: pictures, panels, TensorBoard's entries, and MTEB-shaped files."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.suites import Suite
from evaluation.mteb import write_mteb
from evaluation.projection import figure_png, plane_figure
from evaluation.report import Curves, write_report
from evaluation.report_panels import Panel, make_panel
from lightning_app.measurement import Measured, Measures
from lightning_app.tensorboard import log_model
from storage.atomic import write_bytes


def write_all(
    folder: Path,
    measured: Sequence[Measured],
    rows: Sequence[Mapping[str, Any]],
    measures: Measures,
    *,
    title: str,
    context: Mapping[str, Any],
    revision: str,
    curves: Curves | None = None,
) -> None:
    """Write ``report.*``, ``projections/``, ``tensorboard/`` and ``mteb/`` of a finished evaluation into its folder.

    Args:
        folder: An existing folder.
        measured: The models, with their embeddings; those that failed are left out of pictures and files.
        rows: All rows of the report, in the order of its tables.
        measures: What was measured.
        title, context, curves: As for ``write_report``.
        revision: What the MTEB-shaped files call the models' revision.
    """
    (folder / "projections").mkdir(exist_ok=True)
    suites = {suite.name: suite.texts for suite in (measures.paper, *measures.reported.values())}
    shown = {row["name"]: row for row in rows}
    pictures: dict[str, Path] = {}
    panels: dict[str, Panel] = {}
    for number, each in enumerate(measured):
        if not each.embeddings:
            continue
        name = str(each.row["name"])
        panels[name] = _panel(each, measures.paper, seed=measures.seed)
        if each.row["family"] == "baseline":
            continue
        pictures[name] = folder / "projections" / f"{_file_name(name, number)}.png"
        figure = plane_figure(panels[name].tsne, panels[name].labels, f"{name}: the paper's 24 sequences")
        write_bytes(pictures[name], figure_png(figure))
        write_mteb(folder / "mteb", each.row, revision=revision, suites=suites)
        log_model(
            folder / "tensorboard" / _file_name(name, number),
            shown[name],
            figure=figure,
            embeddings=each.embeddings[measures.paper.name],
            metadata={"family": panels[name].labels, "text": measures.paper.texts},
        )
    write_report(folder, rows, title=title, context=context, projections=pictures, curves=curves, panels=panels)


def _panel(measured: Measured, suite: Suite, *, seed: int) -> Panel:
    labels = [suite.families[label] for label in suite.labels]
    return make_panel(measured.embeddings[suite.name], labels, suite.texts, seed=seed)


def _file_name(name: str, number: int) -> str:
    """A row's name where it can name a file, else its number: names may be paths and hub ids. No name is a number."""
    return name if re.fullmatch(r"\w[\w.-]{0,80}", name) and not name.isdigit() else str(number)
