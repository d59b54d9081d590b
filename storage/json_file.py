"""JSON files, written whole and read strictly.

Python's own module accepts ``NaN``, which is not JSON, and keeps the last of two equal keys without a
word.  Both are refused here, when writing and when reading.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from typing import Any

from storage.atomic import write_text
from storage.text_file import read_text


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write ``obj`` as indented JSON, in one step.

    Raises:
        ValueError: a number is NaN or infinite (the message names its key path), or a key is no string.
        TypeError: a value is of a type that JSON does not have.
    """
    _refuse_what_json_lacks(obj, "", os.fspath(path))
    write_text(path, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: the file is missing, is not UTF-8 or not JSON, repeats a key within one object, or
            holds a number that is not finite.  The message names the file and the line.

    >>> import pathlib, tempfile
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "a.json"
    >>> write_json(target, {"a": [1, 2.5]})
    >>> read_json(target)
    {'a': [1, 2.5]}
    """
    return parse_json(read_text(path, "a JSON file"), os.fspath(path))


def parse_json(text: str, name: str) -> Any:
    """Parse JSON with the strictness of :func:`read_json`; ``name`` is the file that errors speak of."""

    def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            keys = [key for key, _ in pairs]
            repeated = next(key for key in keys if keys.count(key) > 1)
            where = _lines_of(json.dumps(repeated, ensure_ascii=False), text)
            raise ValueError(f"{name}, {where}: expected each key once, got {repeated!r} twice; remove one of them")
        return result

    def number(literal: str) -> float:
        value = float(literal)
        if not math.isfinite(value):
            where = _lines_of(literal, text)
            raise ValueError(f"{name}, {where}: expected a finite number, got {literal}; write null if undefined")
        return value

    try:
        return json.loads(text, object_pairs_hook=object_of, parse_float=number, parse_constant=number)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}, line {error.lineno}: expected JSON, got {error.msg!r}; correct that line") from None
    except RecursionError:
        raise ValueError(f"{name}: expected JSON of modest depth, got hundreds of nested levels") from None


def _lines_of(token: str, text: str) -> str:
    """Say on which lines ``token`` stands; the parser does not tell where it was when a hook refused."""
    numbers = sorted({text.count("\n", 0, found.start()) + 1 for found in re.finditer(re.escape(token), text)})
    shown = ", ".join(str(number) for number in numbers[:4]) or "?"
    return f"line {shown}" if len(numbers) < 2 else f"lines {shown}"


def _refuse_what_json_lacks(value: Any, where: str, name: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(
            f"{name}: expected finite numbers, got {value} at {where or 'the top'}; write null with a reason"
        )
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{name}: expected string keys, got {key!r} at {where or 'the top'}; name it")
            _refuse_what_json_lacks(inner, f"{where}.{key}".lstrip("."), name)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            _refuse_what_json_lacks(inner, f"{where}[{index}]", name)
