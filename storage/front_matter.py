"""The front matter of a model card: the YAML between the two lines ``---`` that begin its README.md."""

from __future__ import annotations

import re
from typing import Any

import yaml


def front_matter_of(readme: str) -> dict[str, Any]:
    """Return the YAML between the two lines ``---`` that begin a model card; empty where there is none that can be read.

    >>> front_matter_of("---\\nlicense: mit\\n---\\n# A model")
    {'license': 'mit'}
    """
    found = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", readme, flags=re.DOTALL | re.MULTILINE)
    try:
        content = yaml.safe_load(found[1]) if found else None
    except (yaml.YAMLError, ValueError, RecursionError):
        # Somebody else's card is no reason to refuse anything; ValueError is what an impossible date raises.
        return {}
    return {key: value for key, value in content.items() if isinstance(key, str)} if isinstance(content, dict) else {}
