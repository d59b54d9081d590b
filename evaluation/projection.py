"""Pictures of embeddings: t-SNE and PCA in the plane. Look at them; never measure in them.

Dimension names:
    n: texts
    d: embedding width
"""

import io
import math
from collections.abc import Hashable

import numpy as np
import torch
from jaxtyping import Float64
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from sklearn.manifold import TSNE

from evaluation.centring import Embeddings, centred, coincide
from evaluation.labels import Labels, label_codes, label_values

# Okabe & Ito's colours, told apart with any common colour vision; black last. 8 colours and 9 markers make 72 pairs.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#B8A800", "#222222")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_LEGEND_ROWS = 18
_LABEL_LENGTH = 28


def tsne(embeddings: Embeddings, *, seed: int = 0) -> Float64[np.ndarray, "n 2"]:
    """The paper's projection: perplexity 30, or 10 below 50 texts, 1000 iterations, started from the first two axes.

    Perplexity must stay below n: below 11 texts it is (n - 1) / 3. Distances in the plane say little; no metric of it
    is ever reported. Embeddings that coincide are drawn as the one point they are.

    Args:
        embeddings: (n, d), any floating dtype.
        seed: of scikit-learn's TSNE.

    Returns:
        (n, 2) coordinates.

    Raises:
        ValueError: fewer than 3 texts, or embeddings that are not a finite matrix.

    Reference:
        van der Maaten & Hinton, "Visualizing data using t-SNE", 2008.

    Example:
        >>> tsne(np.eye(12)).shape
        (12, 2)
    """
    points = centred(embeddings)
    n, width = points.shape
    if n < 3:
        raise ValueError(f"embeddings: expected at least 3 texts for t-SNE, got {n}; add texts")
    if coincide(points):
        return np.zeros((n, 2))
    array = points.cpu().numpy()
    if width == 1:
        array = np.hstack([array, np.zeros_like(array)])  # the two starting axes need a second column
    perplexity = 30.0 if n >= 50 else 10.0 if n >= 11 else (n - 1) / 3
    plane = TSNE(2, perplexity=perplexity, max_iter=1000, init="pca", random_state=seed).fit_transform(array)
    return np.asarray(plane, dtype=np.float64)


def pca(embeddings: Embeddings) -> tuple[Float64[np.ndarray, "n 2"], tuple[float, float]]:
    """The first two principal axes, and the share of the variance that lies along each.

    Unlike t-SNE it is linear: distances along the axes are distances of the embeddings. The sign of an axis is free; here
    the coordinate of largest size is positive.

    Args:
        embeddings: (n, d), any floating dtype.

    Returns:
        (n, 2) coordinates, and the two shares, 0 to 1. One-dimensional embeddings have a second axis of zeros with share
        0. Where all embeddings coincide the coordinates are 0 and the shares nan.

    Raises:
        ValueError: embeddings that are not a finite matrix.

    Reference:
        Jolliffe, "Principal component analysis", 2nd ed., 2002.

    Example:
        >>> plane, shares = pca(np.array([[0.0, 0.0], [4.0, 0.0], [2.0, 1.0], [2.0, -1.0]]))
        >>> shares
        (0.8, 0.2)
    """
    points = centred(embeddings)
    plane = torch.zeros(points.shape[0], 2, dtype=torch.float64)
    if coincide(points):
        return plane.numpy(), (math.nan, math.nan)
    left, scales, _ = torch.linalg.svd(points / points.abs().max(), full_matrices=False)
    axes = (left * scales)[:, :2] * points.abs().max()
    plane[:, : axes.shape[1]] = axes.cpu()
    largest = plane.gather(0, plane.abs().argmax(dim=0, keepdim=True))
    shares = [*(scales**2 / (scales**2).sum()).tolist(), 0.0]
    return torch.where(largest < 0, -plane, plane).numpy(), (shares[0], shares[1])


def projection_figure(embeddings: Embeddings, labels: Labels, title: str, *, seed: int = 0) -> Figure:
    """The t-SNE picture of one model: a colour and a marker for each label, the legend outside the axes.

    It is a plain `matplotlib.figure.Figure` on the Agg canvas, unknown to pyplot, so nothing has to be closed.

    Args:
        embeddings: (n, d), any floating dtype, at least 3 rows.
        labels: n labels; the legend lists them in order of first appearance.
        title: text above the picture, taken literally.
        seed: of the projection.

    Raises:
        ValueError: fewer than 3 texts, embeddings that are not a finite matrix, labels that do not match them.

    Example:
        >>> figure = projection_figure(np.eye(12), ["a", "b"] * 6, "identity")
        >>> figure_png(figure)[1:4]
        b'PNG'
    """
    return plane_figure(tsne(embeddings, seed=seed), labels, title)


def plane_figure(plane: Float64[np.ndarray, "n 2"], labels: Labels, title: str) -> Figure:
    """`projection_figure` of coordinates that are known already."""
    codes, k = label_codes(labels, plane.shape[0])
    groups = codes.numpy()
    values = label_values(labels)
    names = [_one_line(values[int(np.argmax(groups == code))]) for code in range(k)]
    columns = -(-k // _LEGEND_ROWS)
    figure = Figure(figsize=(5.2 + 1.5 * columns, 4.2), dpi=110, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for code in range(k):
        member = groups == code
        axes.scatter(
            plane[member, 0],
            plane[member, 1],
            s=38,
            color=_COLOURS[code % len(_COLOURS)],
            marker=_MARKERS[code % len(_MARKERS)],
            edgecolors="white",
            linewidths=0.6,
        )
    axes.set_title(_one_line(title, 60), fontsize=11, loc="left", parse_math=False)
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    for spine in axes.spines.values():
        spine.set_color("#cccccc")
    # Names are set afterwards: matplotlib skips labels that begin with an underscore and reads dollars as formulas.
    placeholders = [str(code) for code in range(k)]
    legend = figure.legend(
        axes.collections, placeholders, loc="outside right upper", frameon=False, fontsize=8, ncols=columns
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)
    return figure


def figure_png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file, to be written whole."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _one_line(value: Hashable, length: int = _LABEL_LENGTH) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= length else text[: length - 1] + "…"
