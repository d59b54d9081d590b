"""What is drawn of one model: its texts in the plane, twice, and the distances between them.

Dimension names:
    n: texts
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from evaluation.centring import Embeddings, centred
from evaluation.labels import Labels, label_codes, label_values
from evaluation.projection import pca, tsne
from evaluation.report_text import shortened, visible

LISTED_TEXTS = 64
"""Up to this many texts the page carries the distances as numbers; beyond, only as the picture."""
_TOOLTIP = 48


@dataclass(frozen=True, kw_only=True)
class Panel:
    """The drawings of one model on one suite, as coordinates and distances.

    Raises:
        ValueError: a number that is not finite, or parts that differ in their number of texts.
    """

    tsne: Float64[np.ndarray, "n 2"]
    """t-SNE coordinates."""
    pca: Float64[np.ndarray, "n 2"]
    """Coordinates along the first two principal axes."""
    pca_shares: tuple[float, float]
    """Shares of the variance along the two axes, 0 to 1; nan where all embeddings coincide."""
    distances: Float64[np.ndarray, "n n"]
    """Euclidean distances."""
    labels: tuple[str, ...]
    """The family of each text."""
    texts: tuple[str, ...]
    """The beginning of each text, shown when it is pointed at."""

    def __post_init__(self) -> None:
        n = len(self.labels)
        parts = {"tsne": (n, 2), "pca": (n, 2), "distances": (n, n)}
        for name, shape in parts.items():
            values = getattr(self, name)
            if values.shape != shape:
                raise ValueError(f"{name}: expected shape {shape} for {n} labels, got {values.shape}; align the two")
            if not np.isfinite(values).all():
                raise ValueError(f"{name}: expected finite numbers, got NaN or infinity; check the embeddings")
        if len(self.texts) != n:
            raise ValueError(f"texts: expected {n}, one for each label, got {len(self.texts)}; align the two")

    def listed(self) -> dict[str, Any]:
        """The panel as plain JSON, with four significant digits."""
        first, second = (None if math.isnan(share) else _digits(share) for share in self.pca_shares)
        content: dict[str, Any] = {
            "labels": list(self.labels),
            "texts": list(self.texts),
            "tsne": [[_digits(value) for value in row] for row in self.tsne.tolist()],
            "pca": [[_digits(value) for value in row] for row in self.pca.tolist()],
            "pca_shares": [first, second],
        }
        if len(self.labels) <= LISTED_TEXTS:
            content["distances"] = [[_digits(value) for value in row] for row in self.distances.tolist()]
        return content


def make_panel(embeddings: Embeddings, labels: Labels, texts: Sequence[str], *, seed: int = 0) -> Panel:
    """The drawings of one model.

    Args:
        embeddings: (n, d), any floating dtype, at least 3 rows.
        labels: n labels, shown as text.
        texts: the n texts; their beginnings are kept.
        seed: of t-SNE.

    Raises:
        ValueError: fewer than 3 texts, embeddings that are not a finite matrix, labels or texts that do not match them.

    Example:
        >>> panel = make_panel(torch.eye(12), ["even", "odd"] * 6, ["2, 4", "1, 3"] * 6)
        >>> panel.labels[:2], round(float(panel.distances[0, 1]), 3)
        (('even', 'odd'), 1.414)
    """
    points = centred(embeddings)
    label_codes(labels, points.shape[0])  # refuses labels that are missing or too few
    plane, shares = pca(embeddings)
    exact = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    return Panel(
        tsne=tsne(embeddings, seed=seed),
        pca=plane,
        pca_shares=shares,
        distances=exact.cpu().numpy(),
        labels=tuple(visible(label) for label in label_values(labels)),
        texts=tuple(shortened(text, _TOOLTIP) for text in texts),
    )


def _digits(value: float) -> float:
    return float(f"{value:.4g}")
