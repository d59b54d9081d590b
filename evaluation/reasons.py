"""Undefined numbers on their way into a report: nan becomes None, with the reason beside it."""

import math
from collections.abc import Mapping
from typing import Any


def null_for_nan(values: Mapping[str, float], reason: str | None) -> dict[str, Any]:
    """The values, each nan replaced by None with ``<key>_reason`` after it.

    Example:
        >>> null_for_nan({"cka": math.nan, "rsa": 0.5}, "all embeddings coincide")
        {'cka': None, 'cka_reason': 'all embeddings coincide', 'rsa': 0.5}
    """
    report: dict[str, Any] = {}
    for key, value in values.items():
        if not math.isnan(value):
            report[key] = value
            continue
        assert reason is not None, f"{key} is nan without a reason"
        report[key] = None
        report[f"{key}_reason"] = reason
    return report
