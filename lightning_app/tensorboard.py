"""A model's row in TensorBoard: scalars at step 0, its pictures, and its embeddings in the projector."""

import io
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.atomic import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from evaluation.centring import Embeddings

EVENTS = "events.out.tfevents.report"
"""One file a folder, written whole: a second call replaces it, and Lightning's files beside it are left alone.

Letters sort behind the time stamps in the names of other files; TensorBoard reads files in that order."""
_MEASURES = ("silhouette_", "davies_bouldin_", "calinski_harabasz_", "nn1_", "knn5_", "linear_probe_", "kmeans_")
_GROUPS = {"null": ("z", "p"), "interval": ("low", "high")}


def log_row(folder: Path, row: Mapping[str, Any], *, figures: Mapping[str, "Figure"] | None = None) -> None:
    """A model's row as TensorBoard points at step 0, beside the curves of the stages; what is undefined is left out.

    The tags are ``SUITE/silhouette_true`` and so on, ``SUITE/null_z``, ``SUITE/silhouette_by_family/NAME``, ``retention/cka``,
    ``geometry/anisotropy``, ``benchmarks/TASK``, ``length/TERMS``, and those of the figures. In a folder that holds the curves of
    a stage each begins with ``final/``: the weights that a stage kept are not a point before its first epoch.

    Args:
        folder: Of one model; what an earlier call wrote into it is replaced.
        row: Of a report.
        figures: Tag -> picture.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary

    has_curves = any(file.name != EVENTS for file in folder.glob("events.out.tfevents.*"))
    place = "final/" if has_curves else ""
    values = [Summary.Value(tag=place + tag, simple_value=value) for tag, value in row_scalars(row).items()]
    values += [Summary.Value(tag=place + tag, image=_image(figure)) for tag, figure in (figures or {}).items()]
    write_bytes(folder / EVENTS, _events(values))


def log_model(
    folder: Path,
    row: Mapping[str, Any],
    *,
    figure: "Figure",
    embeddings: "Embeddings",
    metadata: Mapping[str, Sequence[object]],
) -> None:
    """`log_row` with the pictures of the paper's suite, and its embeddings in the projector under ``paper``.

    Args:
        folder: Of one model; what an earlier call wrote into it is replaced.
        row: Of a report.
        figure: The t-SNE picture.
        embeddings: Of the paper's suite, (n, d).
        metadata: Column -> n texts, such as the families and the texts themselves.
    """
    from evaluation.projector import write_projector

    figures = {"projection/paper": figure}
    if any(value is not None for _, value in _families(row)):
        figures["silhouette/paper"] = silhouette_figure(row)
    log_row(folder, row, figures=figures)
    write_projector(folder, "paper", embeddings, metadata)


def row_scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Tag -> value of every finite number of a row that is a measurement of the model.

    Example:
        >>> row_scalars({"silhouette_true": 0.25, "null": {"z": 7.0, "sd": 0.1}, "retention": {"cka": None}})
        {'paper/silhouette_true': 0.25, 'paper/null_z': 7.0}
    """
    found: dict[str, Any] = {}
    for suite, report in {"paper": row, **(row.get("suites") or {})}.items():
        if not isinstance(report, Mapping):
            continue
        found |= {f"{suite}/{key}": value for key, value in report.items() if key.startswith(_MEASURES)}
        for group, keys in _GROUPS.items():
            found |= {f"{suite}/{group}_{key}": (report.get(group) or {}).get(key) for key in keys}
        found |= {f"{suite}/silhouette_by_family/{name}": value for name, value in _families(report)}
    for group in ("retention", "geometry", "benchmarks"):
        found |= {f"{group}/{key}": value for key, value in (row.get(group) or {}).items()}
    found |= {f"length/{entry['terms']}": entry["silhouette_true"] for entry in row.get("lengths") or ()}
    return {tag: float(value) for tag, value in found.items() if _is_finite(value)}


def silhouette_figure(row: Mapping[str, Any]) -> "Figure":
    """A bar a family, the mean of all texts, and what shuffled labels give (mean and two standard deviations)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    families = [(name, value) for name, value in _families(row) if value is not None]
    figure = Figure(figsize=(5.6, 1.4 + 0.32 * len(families)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    null = row.get("null") or {}
    if _is_finite(null.get("mean")) and _is_finite(null.get("sd")):
        low, high = (null["mean"] + sign * 2 * null["sd"] for sign in (-1, 1))
        axes.axvspan(low, high, color="#cccccc", label="shuffled labels, 2 sd")
    places = range(len(families))
    axes.barh(places, [value for _, value in families], color="#0072B2", height=0.6)
    axes.axvline(0, color="#222222", linewidth=0.8)
    if _is_finite(row.get("silhouette_true")):
        axes.axvline(row["silhouette_true"], color="#D55E00", linewidth=1.6, label="all texts")
    axes.set(xlabel="silhouette", xlim=(-1, 1))
    axes.set_yticks(places, [" ".join(name.split())[:28] for name, _ in families], parse_math=False)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    return figure


def _families(report: Mapping[str, Any]) -> list[tuple[str, Any]]:
    by_family = report.get("silhouette_by_family") or {}
    return [(name, value) for name, value in by_family.items() if value is None or _is_finite(value)]


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _image(figure: "Figure") -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    from evaluation.projection import figure_png

    width, height = figure.canvas.get_width_height()
    return Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=figure_png(figure))


def _events(values: Sequence[Any]) -> bytes:
    """An events file that holds the values at step 0."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    now, content = time.time(), io.BytesIO()
    records = RecordWriter(content)
    # a summary each, as TensorBoard's own writers do: the reader keeps the first kind of data that it meets
    for event in (
        Event(wall_time=now, file_version="brain.Event:2"),
        *(Event(wall_time=now, step=0, summary=Summary(value=[value])) for value in values),
    ):
        records.write(event.SerializeToString())
    return content.getvalue()
