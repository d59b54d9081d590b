"""The shape of report.json, the same from training, evaluation and the study; checked before anything is written."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

FAMILIES = ("encoder", "base", "lora", "soup", "slerp", "control", "baseline", "published")
SOURCES = ("measured", "published")
PAPER_COLUMNS = ("silhouette_true", "davies_bouldin_true", "silhouette_kmeans", "davies_bouldin_kmeans")
NULL_KEYS = ("mean", "sd", "z", "p")
RETENTION_KEYS = ("cka", "rsa", "knn", "procrustes")
HIDDEN_SUITE = "selection"
"""The suite on which early stopping and searches choose; printing it would report a number that was optimised."""


def validate_report(report: Any) -> None:
    """Check a report against the schema.

    A report is ``{"rows": [...], "context": {...}}`` and whatever else its maker adds. Every row has ``name`` (unique),
    ``family``, ``source``, ``prompt`` (text, or None for no prompt), the four columns of the paper's Table 2, ``null``,
    ``suites`` and ``retention``; ``note`` is optional. A number is finite, or None with ``<key>_reason`` beside it; the
    same holds for ``null``, ``retention`` and each suite as a whole. Further keys are allowed.

    Raises:
        ValueError: naming the key, what it should hold, and what it holds.

    Example:
        >>> validate_report({"rows": []})
        Traceback (most recent call last):
            ...
        ValueError: report.context: expected a mapping, got nothing; add the key
    """
    _require(report, "report", Mapping, "a mapping")
    context = _get(report, "context", "report")
    _require(context, "report.context", Mapping, "a mapping")
    rows = _get(report, "rows", "report", "a list of rows")
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        _fail("report.rows", "a list of rows", rows)
    names: set[str] = set()
    for index, row in enumerate(rows):
        _check_row(row, f"rows[{index}]")
        if row["name"] in names:
            raise ValueError(f"rows[{index}].name: expected a name of its own, got a second {row['name']!r}; rename it")
        names.add(row["name"])
    for key, value in report.items():
        _check_finite(value, f"report.{key}" if key != "rows" else "rows")


def _check_row(row: Any, where: str) -> None:
    _require(row, where, Mapping, "a mapping")
    name = _get(row, "name", where, "a text")
    if not isinstance(name, str) or not name.strip():
        _fail(f"{where}.name", "a text that is not empty", name)
    for key, allowed in (("family", FAMILIES), ("source", SOURCES)):
        if _get(row, key, where, f"one of {', '.join(allowed)}") not in allowed:
            _fail(f"{where}.{key}", f"one of {', '.join(allowed)}", row[key])
    for key in ("prompt", "note"):
        value = _get(row, key, where, "a text or None") if key == "prompt" else row.get(key)
        if value is not None and not isinstance(value, str):
            _fail(f"{where}.{key}", "a text or None", value)
    _check_numbers(row, PAPER_COLUMNS, where)
    _check_group(row, "null", NULL_KEYS, where)
    _check_group(row, "retention", RETENTION_KEYS, where)
    suites = _get(row, "suites", where)
    _require(suites, f"{where}.suites", Mapping, "a mapping")
    for suite in suites:
        if suite == HIDDEN_SUITE:
            raise ValueError(
                f"{where}.suites.{suite}: expected a suite that chose nothing, got the one for choosing; leave it out"
            )
        if not suite.endswith("_reason"):
            _check_group(suites, suite, ("silhouette_true",), f"{where}.suites")


def _check_group(parent: Mapping[str, Any], key: str, keys: Sequence[str], where: str) -> None:
    """A mapping of numbers with at least these keys, or None with a reason."""
    group = _get(parent, key, where)
    if group is None:
        _check_reason(parent, key, where)
        return
    _require(group, f"{where}.{key}", Mapping, "a mapping, or None with a reason")
    _check_numbers(group, keys, f"{where}.{key}")
    for other, value in group.items():
        if value is None:
            _check_reason(group, other, f"{where}.{key}")


def _check_numbers(parent: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    for key in keys:
        value = _get(parent, key, where, "a number, or None with a reason")
        if value is None:
            _check_reason(parent, key, where)
        elif isinstance(value, bool) or not isinstance(value, int | float):
            _fail(f"{where}.{key}", "a number, or None with a reason", value)


def _check_reason(parent: Mapping[str, Any], key: str, where: str) -> None:
    reason = parent.get(f"{key}_reason")
    if not isinstance(reason, str) or not reason.strip():
        _fail(f"{where}.{key}_reason", f"a text that says why {key} is None", reason)


def _check_finite(value: Any, where: str) -> None:
    """Everything is plain JSON, and no number is NaN or infinite."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                _fail(f"{where} key", "a text", key)
            _check_finite(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_finite(item, f"{where}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: expected a finite number, got {value}; write None and {where}_reason")
    elif value is not None and not isinstance(value, str | int | float):
        _fail(where, "text, numbers, lists and mappings", value)


_MISSING = object()


def _get(parent: Mapping[str, Any], key: str, where: str, expected: str = "a mapping") -> Any:
    value = parent.get(key, _MISSING)
    if value is _MISSING:
        raise ValueError(f"{where}.{key}: expected {expected}, got nothing; add the key")
    return value


def _require(value: Any, where: str, kind: type, expected: str) -> None:
    if not isinstance(value, kind):
        _fail(where, expected, value)


def _fail(where: str, expected: str, value: Any) -> NoReturn:
    raise ValueError(f"{where}: expected {expected}, got {value!r:.80}; correct the report before writing it")
