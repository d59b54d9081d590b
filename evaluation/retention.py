"""How much of a base model's geometry is left in another embedding of the same texts.

Row i of both matrices embeds the same text; the widths may differ. Every number is 1 for identical inputs and does not
change under rotation, rescaling or translation of either side. Memory stays within a few tiles of
`distances.TILE_ELEMENTS` beyond float64 copies of the inputs and products of features with features.
"""

from typing import Any

from evaluation.centring import Embeddings
from evaluation.cka import debiased_cka, measured_cka
from evaluation.neighbour_overlap import NEIGHBOURS, knn_overlap, measured_overlap
from evaluation.paired import paired
from evaluation.procrustes import measured_procrustes, procrustes_similarity
from evaluation.reasons import null_for_nan
from evaluation.representational_similarity import measured_rsa, rsa

__all__ = ["NEIGHBOURS", "debiased_cka", "knn_overlap", "procrustes_similarity", "retention_report", "rsa"]


def retention_report(embeddings: Embeddings, base_embeddings: Embeddings) -> dict[str, Any]:
    """All four, ready for a row of the report.

    Args:
        embeddings: (n, d), any floating dtype.
        base_embeddings: (n, e), the same texts in the same order, by the base model.

    Returns:
        ``cka, rsa, knn, procrustes``. What is undefined is None, and ``<key>_reason`` beside it says why.

    Raises:
        ValueError: matrices that are not finite or differ in their number of rows.

    Example:
        >>> import torch
        >>> report = retention_report(torch.eye(3), torch.eye(3))
        >>> report["cka"], report["cka_reason"]
        (None, 'needs at least 4 texts, got 3')
    """
    x, y = paired(embeddings, base_embeddings)
    report: dict[str, Any] = {}
    for key, (value, reason) in {
        "cka": measured_cka(x, y),
        "rsa": measured_rsa(x, y),
        "knn": measured_overlap(x, y, NEIGHBOURS),
        "procrustes": measured_procrustes(x, y),
    }.items():
        report |= null_for_nan({key: value}, reason)
    return report
