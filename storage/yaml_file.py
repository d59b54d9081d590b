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
    """Read a YAML file of one document into dicts, lists and scalars; an empty one is None.

    Raises:
        ValueError: the file is missing, not UTF-8 or not YAML, holds a tag that would build an object,
            repeats a key within one mapping, or has several documents.  The message names the file and the line.
    """
    documents = parse_yaml_documents(read_text(path, "a YAML file"), os.fspath(path))
    if len(documents) > 1:
        raise ValueError(f"{os.fspath(path)}: expected one document, got {len(documents)}; keep one of them")
    return documents[0] if documents else None


def parse_yaml_documents(text: str, name: str) -> list[Any]:
    """Return every document of a YAML text; errors speak of ``name``, see ``read_yaml``."""
    try:
        return list(yaml.load_all(text, _StrictLoader))  # a safe loader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line_number = mark.line + 1 if mark else 1
        raise ValueError(f"{name}, line {line_number}: {error.problem}; correct that line") from None
    except yaml.YAMLError as error:
        message = " ".join(str(error).split())
        raise ValueError(f"{name}: expected YAML, got {message}; correct the file") from None
    except RecursionError:
        raise ValueError(f"{name}: expected YAML of modest depth, got hundreds of nested levels") from None
    except (ValueError, LookupError, AttributeError) as error:
        # what the loader's constructors raise for a date without a 31st, for !!bool maybe or for !!int ""
        raise ValueError(f"{name}: expected values that fit their tags, got {error}; quote them") from None
