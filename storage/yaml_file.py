"""YAML files, read with the safe loader, which builds plain values only; repeated keys are refused."""

from __future__ import annotations

import os
from collections.abc import Hashable
from typing import Any

import yaml

from storage.text_file import read_text


class _StrictLoader(yaml.SafeLoader):
    """The safe loader, refusing a key that stands twice in one mapping (YAML keeps the last silently)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"expected each key once, got {key!r} twice", key_node.start_mark
                )
            if isinstance(key, Hashable):
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Read a YAML file of one document into dicts, lists and scalars.

    Raises:
        ValueError: the file is missing, not UTF-8 or not YAML, holds a tag that would build an object,
            or repeats a key within one mapping.  The message names the file and the line.
    """
    name = os.fspath(path)
    text = read_text(path, "a YAML file")
    try:
        loader = _StrictLoader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line_number = mark.line + 1 if mark else 1
        raise ValueError(f"{name}, line {line_number}: {error.problem}; correct that line") from None
    except yaml.YAMLError as error:
        message = " ".join(str(error).split())
        raise ValueError(f"{name}: expected YAML, got {message}; correct the file") from None
    except RecursionError:
        raise ValueError(f"{name}: expected YAML of modest depth, got hundreds of nested levels") from None
