"""is_nomic_moe: what says that a folder holds nomic-embed-text-v2-moe, on the hub and as it is written here.

Only the standard library is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HUB_TYPE = "nomic_bert"
"""transformers has a class of this name, without experts: it would fill its MLPs with random numbers."""
SAVED_TYPE = "nomic_bert_moe"
"""In folders that are written here, so that plain transformers refuses them instead."""


def is_nomic_moe(settings: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a NomicBert with a mixture of experts, which transformers' own class lacks.

    Example:
        >>> is_nomic_moe({"model_type": "nomic_bert", "num_experts": 8}), is_nomic_moe({"model_type": "nomic_bert"})
        (True, False)
    """
    return settings.get("model_type") in (HUB_TYPE, SAVED_TYPE) and bool(settings.get("num_experts"))
