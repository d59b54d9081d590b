"""The checks of which a report's schema is made: each names the key, what it should hold, and what it holds."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

_MISSING = object()
NUMBER = "a number, or None with a reason"


def get(parent: Mapping[str, Any], key: str, where: str, expected: str = "a mapping") -> Any:
    """The value of a key that must be there."""
    value = parent.get(key, _MISSING)
    if value is _MISSING:
        raise ValueError(f"{where}.{key}: expected {expected}, got nothing; add the key")
    return value


def require(value: Any, where: str, kind: type, expected: str) -> None:
    """A value of one type."""
    if not isinstance(value, kind):
        fail(where, expected, value)


def fail(where: str, expected: str, value: Any) -> NoReturn:
    """The one message of this file."""
    raise ValueError(f"{where}: expected {expected}, got {value!r:.80}; correct the report before writing it")


def check_text(value: Any, where: str) -> None:
    """A text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        fail(where, "a text that is not empty", value)


def check_list(value: Any, where: str, expected: str) -> None:
    """A list or tuple; text is none."""
    if not isinstance(value, list | tuple):
        fail(where, expected, value)


def check_count(value: Any, where: str) -> None:
    """An integer from 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        fail(where, "a count", value)


def check_numbers(parent: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    """Numbers that must be there, each or None with a reason."""
    for key in keys:
        value = get(parent, key, where, NUMBER)
        if value is None:
            check_reason(parent, key, where)
        elif isinstance(value, bool) or not isinstance(value, int | float):
            fail(f"{where}.{key}", NUMBER, value)


def check_group(parent: Mapping[str, Any], key: str, keys: Sequence[str], where: str) -> bool:
    """A mapping with at least these numbers, or None with a reason; whether it is a mapping."""
    group = get(parent, key, where)
    if group is None:
        check_reason(parent, key, where)
        return False
    require(group, f"{where}.{key}", Mapping, "a mapping, or None with a reason")
    check_numbers(group, keys, f"{where}.{key}")
    for other, value in group.items():
        if value is None:
            check_reason(group, other, f"{where}.{key}")
    return True


def check_reason(parent: Mapping[str, Any], key: str, where: str) -> None:
    """The reason beside a None."""
    reason = parent.get(f"{key}_reason")
    if not isinstance(reason, str) or not reason.strip():
        fail(f"{where}.{key}_reason", f"a text that says why {key} is None", reason)


def check_plain(value: Any, where: str) -> None:
    """Everything is JSON that can be written as UTF-8, and no number is NaN or infinite."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                fail(f"{where} key", "a text", key)
            check_plain(key, f"{where} key")
            check_plain(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            check_plain(item, f"{where}[{index}]")
    elif isinstance(value, str):
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            fail(where, "text that can be written as UTF-8", value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: expected a finite number, got {value}; write None and {where}_reason")
    elif value is not None and not isinstance(value, int | float):
        fail(where, "text, numbers, lists and mappings", value)
