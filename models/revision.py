"""NAME@REVISION: a model and the branch, tag or commit of it that is asked for, in mergekit's notation."""

from __future__ import annotations

import re
from pathlib import Path

from models.backbones import lookup_backbone

HUB_ID = r"[\w.-]+/[\w.-]+"


def split_revision(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """A model's name and the revision that is asked for, behind an ``@`` or beside the name.

    A folder's name is left as it is: what begins like a path, or exists. A name of BACKBONES goes before a folder
    of the same name, with a revision or without; write ``./name`` for the folder.

    Raises:
        ValueError: two different revisions.

    Example:
        >>> split_revision("owner/name@0123abc"), split_revision("e5-mistral@main"), split_revision("./folder@home")
        (('owner/name', '0123abc'), ('e5-mistral', 'main'), ('./folder@home', None))
    """
    name, asked = _split(name)
    if asked is not None and revision is not None and asked != revision:
        raise ValueError(f"model {name}: expected one revision, got {asked!r} and {revision!r}; drop one")
    return name, asked or revision


def is_path(name: str) -> bool:
    """Whether a name begins like a path, and so is never taken for a model's.

    Example:
        >>> is_path("./tiny-llm"), is_path("tiny-llm")
        (True, False)
    """
    return name.startswith(("/", "./", "../", "~")) or name in (".", "..")


def _split(name: str) -> tuple[str, str | None]:
    model, _, revision = name.partition("@")
    if is_path(name) or re.fullmatch(r"[\w.-][\w./-]*", revision) is None:
        return name, None
    if lookup_backbone(model) is None and (re.fullmatch(HUB_ID, model) is None or Path(name).exists()):
        return name, None
    return model, revision
