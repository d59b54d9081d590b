"""How far clusters agree with labels, whatever the clusters are called."""

import math

from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score

from evaluation.codes import row_codes
from evaluation.labels import Labels, label_codes, label_values


def cluster_agreement(labels: Labels, found: Labels) -> dict[str, float]:
    """Three scores of scikit-learn between the labels and the clusters found; renaming either changes nothing.

    Only the adjusted two are comparable between suites: chance gives them 0, while it raises the NMI with the number
    of clusters (24 texts, 6 labels, clusters at random: about 0.35).

    Args:
        labels: n labels, integers or strings.
        found: n clusters, such as those of `kmeans_labels`.

    Returns:
        ``ari``: adjusted Rand index, -0.5..1; ``nmi``: normalised mutual information (arithmetic mean of the
        entropies), 0..1; ``ami``: the same, adjusted for chance, about -1..1. Best 1. All are nan when there are fewer
        than 2 or more than n - 1 distinct labels, where scikit-learn may say 1 (see `agreement_undefined`). One single
        cluster is not undefined: it tells nothing of the labels, and scores 0.

    Raises:
        ValueError: labels and clusters of different lengths, or missing ones (None, NaN).

    Reference:
        Hubert & Arabie, "Comparing partitions", 1985; Vinh, Epps & Bailey, "Information theoretic measures for
        clusterings comparison: variants, properties, normalization and correction for chance", 2010.

    Example:
        >>> cluster_agreement(["even", "even", "prime", "prime"], [1, 1, 0, 0])
        {'ari': 1.0, 'nmi': 1.0, 'ami': 1.0}
    """
    n = len(label_values(labels))
    true, k = label_codes(labels, n)
    clusters, _ = row_codes(found, n, name="found")
    if _undefined(n, k) is not None:
        return dict.fromkeys(("ari", "nmi", "ami"), math.nan)
    return {
        "ari": float(adjusted_rand_score(true.numpy(), clusters.numpy())),
        "nmi": float(normalized_mutual_info_score(true.numpy(), clusters.numpy())),
        "ami": float(adjusted_mutual_info_score(true.numpy(), clusters.numpy())),
    }


def agreement_undefined(labels: Labels) -> str | None:
    """Why nothing can agree with these labels; None when `cluster_agreement` is defined.

    Example:
        >>> agreement_undefined(["even"] * 4)
        'needs 2 to 3 distinct labels for 4 texts, got 1'
    """
    n = len(label_values(labels))
    return _undefined(n, label_codes(labels, n)[1])


def _undefined(n: int, k: int) -> str | None:
    if 2 <= k <= n - 1:
        return None
    if n < 3:
        return f"needs at least 3 texts with 2 distinct labels, got {n} texts"
    return f"needs 2 to {n - 1} distinct labels for {n} texts, got {k}"
