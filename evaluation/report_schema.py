"""The shape of report.json, the same from training, evaluation and the study; checked before anything is written."""

from collections.abc import Mapping
from typing import Any

from evaluation.report_checks import (
    check_count,
    check_group,
    check_list,
    check_numbers,
    check_plain,
    check_reason,
    check_text,
    fail,
    get,
    require,
)

FAMILIES = ("encoder", "base", "lora", "soup", "slerp", "control", "baseline", "published")
SOURCES = ("measured", "published")
PAPER_COLUMNS = ("silhouette_true", "davies_bouldin_true", "silhouette_kmeans", "davies_bouldin_kmeans")
NULL_KEYS = ("mean", "sd", "z", "p")
RETENTION_KEYS = ("cka", "rsa", "knn", "procrustes")
HIDDEN_SUITE = "selection"
"""The suite on which early stopping and searches choose; printing it would report a number that was optimised."""

# What a row, and each suite in it, may hold beside the four columns.
_NUMBERS = (
    *PAPER_COLUMNS,
    "silhouette_cosine",
    "calinski_harabasz_true",
    "calinski_harabasz_kmeans",
    "nn1_accuracy",
    "knn5_accuracy",
    "linear_probe_accuracy",
    "kmeans_ari",
    "kmeans_nmi",
    "kmeans_ami",
)
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "null": NULL_KEYS,
    "null_within": NULL_KEYS,
    "interval": ("low", "high", "sd", "level"),
    "jackknife": ("sd", "low", "high"),
    "geometry": (),
    "benchmarks": (),
}
_NESTED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "null_kmeans": {"silhouette": ("mean", "sd", "high"), "davies_bouldin": ("mean", "sd", "low")},
    "kmeans_spread": {
        "silhouette": ("mean", "sd", "low", "high"),
        "davies_bouldin": ("mean", "sd", "low", "high"),
        "best": ("silhouette", "davies_bouldin"),
    },
}


def validate_report(report: Any) -> None:
    """Check a report against the schema.

    A report is ``{"rows": [...], "context": {...}}`` and whatever else its maker adds. Every row has ``name`` (unique),
    ``family``, ``source``, ``prompt`` (text, or None for no prompt), the four columns of the paper's Table 2, ``null``,
    ``suites`` and ``retention``; ``note`` is optional, and so is ``error``, the text of a model that could not be
    measured. A number is finite, or None with ``<key>_reason`` beside it; the same holds for ``null``, ``retention`` and
    each suite as a whole.

    A row, and each of its suites, may also hold further numbers (``nn1_accuracy``, ``kmeans_ami``...), ``interval``,
    ``jackknife``, ``null_within``, ``null_kmeans``, ``kmeans_spread``, ``geometry``, ``benchmarks``, ``silhouette_by_family``,
    ``confusion``, ``nuisance`` and ``lengths``; these are checked where they stand. Other keys are free.

    Raises:
        ValueError: naming the key, what it should hold, and what it holds.

    Example:
        >>> validate_report({"rows": []})
        Traceback (most recent call last):
            ...
        ValueError: report.context: expected a mapping, got nothing; add the key
    """
    require(report, "report", Mapping, "a mapping")
    context = get(report, "context", "report")
    require(context, "report.context", Mapping, "a mapping")
    rows = get(report, "rows", "report", "a list of rows")
    check_list(rows, "report.rows", "a list of rows")
    names: set[str] = set()
    for index, row in enumerate(rows):
        _check_row(row, f"rows[{index}]")
        if row["name"] in names:
            raise ValueError(f"rows[{index}].name: expected a name of its own, got a second {row['name']!r}; rename it")
        names.add(row["name"])
    for key, value in report.items():
        check_plain(value, f"report.{key}" if key != "rows" else "rows")


def _check_row(row: Any, where: str) -> None:
    require(row, where, Mapping, "a mapping")
    check_text(get(row, "name", where, "a text"), f"{where}.name")
    for key, allowed in (("family", FAMILIES), ("source", SOURCES)):
        if get(row, key, where, f"one of {', '.join(allowed)}") not in allowed:
            fail(f"{where}.{key}", f"one of {', '.join(allowed)}", row[key])
    for key in ("prompt", "note"):
        value = get(row, key, where, "a text or None") if key == "prompt" else row.get(key)
        if value is not None and not isinstance(value, str):
            fail(f"{where}.{key}", "a text or None", value)
    if "error" in row:
        check_text(row["error"], f"{where}.error")
    check_numbers(row, PAPER_COLUMNS, where)
    check_group(row, "null", NULL_KEYS, where)
    check_group(row, "retention", RETENTION_KEYS, where)
    _check_measured(row, where)
    suites = get(row, "suites", where)
    require(suites, f"{where}.suites", Mapping, "a mapping")
    for suite in suites:
        if suite == HIDDEN_SUITE:
            raise ValueError(
                f"{where}.suites.{suite}: expected a suite that chose nothing, got the one for choosing; leave it out"
            )
        if not suite.endswith("_reason") and check_group(suites, suite, ("silhouette_true",), f"{where}.suites"):
            _check_measured(suites[suite], f"{where}.suites.{suite}")


def _check_measured(part: Mapping[str, Any], where: str) -> None:
    """The optional keys of a row or of a suite, wherever they occur."""
    check_numbers(part, [key for key in _NUMBERS if key in part], where)
    for key, keys in _GROUPS.items():
        if key in part and check_group(part, key, keys, where):
            numbers = [other for other in part[key] if not isinstance(part[key][other], str)]
            check_numbers(part[key], numbers, f"{where}.{key}")
    for key, groups in _NESTED.items():
        if key in part and check_group(part, key, (), where):
            for name, keys in groups.items():
                check_group(part[key], name, keys, f"{where}.{key}")
    for key, check in (
        ("silhouette_by_family", _check_families),
        ("confusion", _check_confusion),
        ("nuisance", _check_nuisance),
        ("lengths", _check_lengths),
    ):
        if part.get(key) is not None:
            check(part[key], f"{where}.{key}")
        elif key in part:
            check_reason(part, key, where)


def _check_families(families: Any, where: str) -> None:
    """Numbers, or None where a family has no silhouette of its own."""
    require(families, where, Mapping, "a mapping from family to number")
    for name, value in families.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float | str)):
            fail(f"{where}.{name}", "a number or None", value)


def _check_confusion(confusion: Any, where: str) -> None:
    require(confusion, where, Mapping, "a mapping")
    families = get(confusion, "families", where, "a list of families")
    matrix = get(confusion, "matrix", where, "a row of counts a family")
    check_numbers(confusion, ("accuracy",), where)
    check_list(families, f"{where}.families", "a list of families")
    check_list(matrix, f"{where}.matrix", "a row of counts a family")
    for row in matrix:
        check_list(row, f"{where}.matrix", "a row of counts a family")
        for count in row:
            check_count(count, f"{where}.matrix")
    if len(matrix) != len(families) or len({len(row) for row in matrix}) > 1:
        fail(f"{where}.matrix", f"{len(families)} rows of equal length, one a family", [len(row) for row in matrix])


def _check_nuisance(table: Any, where: str) -> None:
    check_list(table, where, "a list of nuisances")
    for index, entry in enumerate(table):
        place = f"{where}[{index}]"
        require(entry, place, Mapping, "a mapping")
        check_text(get(entry, "name", place, "a text"), f"{place}.name")
        check_numbers(entry, [key for key, value in entry.items() if not isinstance(value, str)], place)


def _check_lengths(lengths: Any, where: str) -> None:
    check_list(lengths, where, "a list of sequence lengths")
    for index, entry in enumerate(lengths):
        place = f"{where}[{index}]"
        require(entry, place, Mapping, "a mapping")
        check_count(get(entry, "terms", place, "a count of terms"), f"{place}.terms")
        check_numbers(entry, ("silhouette_true",), place)
        if "null" in entry:
            check_group(entry, "null", ("mean",), place)
