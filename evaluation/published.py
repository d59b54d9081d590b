"""The rows that the paper prints (its Table 2), to stand beside measured ones and never to pass for them."""

from typing import Any

_COLUMNS = ("silhouette_true", "davies_bouldin_true", "silhouette_kmeans", "davies_bouldin_kmeans")

TABLE_2: tuple[tuple[str, float, float, float, float], ...] = (
    # model                       true labels        KMeans labels
    #                             silh.    DBI       silh.   DBI
    ("embeddinggemma-300m",      0.0339,  2.1082,   0.0857, 1.6192),
    ("gte-multilingual-base",   -0.0837,  3.1835,   0.1904, 1.2395),
    ("gte-large-en-v1.5",       -0.0924,  3.1173,   0.1718, 1.2234),
    ("nomic-embed-text-v2-moe", -0.1141,  3.2009,   0.2497, 1.1364),
    ("multilingual-e5-large",   -0.0640,  2.6140,   0.1831, 1.3723),
    ("qwen3-embedding-0.6b",     0.1830,  1.5173,   0.1898, 1.3560),
    ("gte-qwen2-1.5b-instruct",  0.0563,  2.0755,   0.1499, 1.3922),
    ("qwen3-embedding-4b",       0.2724,  1.2080,   0.2724, 1.2081),
    ("gritlm-7b",                0.2017,  1.3827,   0.2429, 1.1863),
    ("gte-qwen2-7b-instruct",    0.1229,  1.6347,   0.1136, 1.5824),
    ("e5-mistral-7b-instruct",   0.3037,  1.1061,   0.3037, 1.1061),
    ("qwen3-embedding-8b",       0.3103,  1.0893,   0.3103, 1.0893),
    ("llama-embed-nemotron-8b",  0.0953,  1.7002,   0.0963, 1.6583),
    ("bge-multilingual-gemma2",  0.2568,  1.2246,   0.2568, 1.2246),
)  # fmt: skip
"""Model, then the four columns as printed (four decimals), in the order of the paper: by size."""


def published_rows() -> list[dict[str, Any]]:
    """The 14 rows of the paper's Table 2 in the shape of a report's row.

    Family and source are ``published``, and each name ends in `` (paper)``, so that no row takes the name of a measurement of
    the same model. The paper prints neither a null nor a retention, and not the prompt that it used.

    Returns:
        New mappings at every call; a caller may change them.

    Reference:
        Table 2 of the paper; its 24 texts are the ``paper`` suite.

    Example:
        >>> best = max(published_rows(), key=lambda row: row["silhouette_true"])
        >>> best["name"], best["silhouette_true"]
        ('qwen3-embedding-8b (paper)', 0.3103)
    """
    unmeasured = "published by the paper, not measured here"
    return [
        {
            "name": f"{name} (paper)",
            "family": "published",
            "source": "published",
            "prompt": None,
            **dict(zip(_COLUMNS, numbers, strict=True)),
            "null": None,
            "null_reason": unmeasured,
            "suites": {},
            "retention": None,
            "retention_reason": unmeasured,
            "note": "Table 2 of the paper",
        }
        for name, *numbers in TABLE_2
    ]
