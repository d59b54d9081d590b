"""A matrix of distances as a picture of a few hundred bytes, made with the standard library.

Dimension names:
    n: texts
"""

import base64
import struct
import zlib
from collections.abc import Sequence
from html import escape
from itertools import groupby

import numpy as np
from jaxtyping import Float64

from evaluation.report_panels import Panel
from evaluation.report_text import number, shortened

_ANCHORS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Viridis, at five places: read alike with any common colour vision, and in grey."""
_LARGEST = 240
"""Pixels on a side; more texts than this share them."""
_LEVELS = 64
"""Colours of a picture; more cost bytes and are not told apart."""


def heat_figure(panel: Panel, name: str) -> str:
    """The distances of one model, families in order, with a scale."""
    order = sorted(range(len(panel.labels)), key=lambda row: list(panel.labels).index(panel.labels[row]))
    distances = panel.distances[np.ix_(order, order)]
    picture = base64.b64encode(heat_png(distances)).decode()
    colours = ", ".join(f"rgb{anchor}" for anchor in _ANCHORS)
    largest = float(distances.max(initial=0.0))
    return (
        '<figure class="card heat"><figcaption><b>Distances</b> between the texts, families in order</figcaption>'
        f'<div class="map">{_families([panel.labels[row] for row in order])}'
        f'<img alt="Distances between the texts of {escape(name)}" src="data:image/png;base64,{picture}"></div>'
        f'<p class="scale"><span>0</span><i style="background:linear-gradient(90deg, {colours})"></i>'
        f"<span>{number(largest, 2 if largest >= 0.1 else 5)}</span></p></figure>"
    )


def heat_png(distances: Float64[np.ndarray, "n n"]) -> bytes:
    """The matrix as a PNG with a palette: dark is 0, bright the largest; at most 240 pixels on a side."""
    matrix = _reduced(distances)
    levels = np.rint((_LEVELS - 1) * matrix / (matrix.max(initial=0.0) or 1.0)).astype(np.uint8)
    raw = b"".join(b"\0" + row.tobytes() for row in levels)
    header = struct.pack(">IIBBBBB", levels.shape[1], levels.shape[0], 8, 3, 0, 0, 0)
    parts = ((b"IHDR", header), (b"PLTE", _palette()), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in parts)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _palette() -> bytes:
    places = np.linspace(0, len(_ANCHORS) - 1, _LEVELS)
    bands = [np.interp(places, range(len(_ANCHORS)), band) for band in zip(*_ANCHORS, strict=True)]
    return np.rint(np.stack(bands, axis=1)).astype(np.uint8).tobytes()


def _reduced(distances: Float64[np.ndarray, "n n"]) -> Float64[np.ndarray, "_ _"]:
    """Means over blocks of equal size, the last one smaller, where there are more texts than pixels."""
    step = -(-len(distances) // _LARGEST)
    if step == 1:
        return distances
    starts = np.arange(0, len(distances), step)
    sums = np.add.reduceat(np.add.reduceat(distances, starts, axis=0), starts, axis=1)
    counts = np.diff([*starts, len(distances)]).astype(np.float64)
    return sums / np.outer(counts, counts)


def _families(labels: Sequence[str]) -> str:
    """The names beside the picture, each as tall as its texts."""
    names = ((label, len(list(members))) for label, members in groupby(labels))
    return (
        '<div class="sides-of">'
        + "".join(
            f'<span style="flex:{count}"><bdi>{escape(shortened(label, 14))}</bdi></span>' for label, count in names
        )
        + "</div>"
    )
