"""Recipe files: one YAML document a merge, in our form or mergekit's; later ones name the results of earlier ones."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merging.mergekit_recipe import parse_mergekit_recipe
from merging.recipe import Recipe, parse_recipe
from merging.schedule import shown
from storage.text_file import read_text
from storage.yaml_file import parse_yaml_documents


@dataclass(frozen=True)
class RecipeFile:
    """The recipes of a file, in the order they are run; the result of the last is the result of the file."""

    recipes: tuple[Recipe, ...]
    text: str
    """The file as it was written."""


def read_recipe_file(path: str | os.PathLike[str], *, compat: str | None = None) -> RecipeFile:
    """Read a file of recipes.

    Args:
        compat: ``mergekit`` for mergekit's own numbers in every recipe; wins over the recipes' own ``compat``.

    Raises:
        ValueError: no YAML, a repeated or unknown key, a value of the wrong kind, a document that nothing leads to
            or that names a later one.  The message names the file and the document.
    """
    file = os.fspath(path)
    text = read_text(path, "a recipe, a YAML file")
    documents = [document for document in parse_yaml_documents(text, file) if document is not None]
    if not documents:
        raise ValueError(f"{file}: expected a recipe, got an empty file; see examples/merge_recipe.yaml")
    single = len(documents) == 1
    places = [file if single else f"{file}, document {i}" for i in range(1, len(documents) + 1)]
    recipes = tuple(_recipe(one, place, compat) for one, place in zip(documents, places, strict=True))
    _check_names(recipes, places)
    return RecipeFile(recipes, text)


def _recipe(document: Any, where: str, compat: str | None) -> Recipe:
    if not isinstance(document, Mapping):
        raise ValueError(f"{where}: expected keys such as method and inputs, got {shown(document)}; write a mapping")
    forms = [key for key in ("method", "merge_method") if key in document]
    if len(forms) != 1:
        raise ValueError(
            f"{where}: expected method (our form) or merge_method (mergekit's), got {' and '.join(forms) or 'neither'}; "
            "give one of them"
        )
    if forms == ["merge_method"]:
        return parse_mergekit_recipe(document, where, compat=compat)
    return parse_recipe(document, where, compat=compat)


def _check_names(recipes: Sequence[Recipe], places: Sequence[str]) -> None:
    """Refuse results that nothing can refer to, that nothing does, and references to what comes later."""
    names = [recipe.name for recipe in recipes]
    for i, (recipe, place) in enumerate(zip(recipes, places, strict=True)):
        if recipe.name is not None and recipe.name in names[:i]:
            raise ValueError(f"{place}: name: expected a name of its own, got {recipe.name!r} again; rename one")
        named = {ref.model for ref in recipe.models if ref.revision is None}
        for later in names[i:]:
            if later in named:
                raise ValueError(f"{place}: expected names of earlier documents, got {later!r}; move that one up")
    for i, (name, place) in enumerate(zip(names[:-1], places, strict=False), 1):
        if name is None:
            raise ValueError(f"{place}: expected a name, got none; only the last document may do without")
        if not any(name == ref.model for later in recipes[i:] for ref in later.models):
            raise ValueError(
                f"{place}: expected a later document that uses {name!r}, got none; the last document is the "
                "result, use this one in it or remove it"
            )
