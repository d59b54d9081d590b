"""Running a recipe file: names to folders, then one merge a document; results of earlier documents live beside the output."""

import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from merging.engine import merge_checkpoints
from merging.plan import MergePlan, plan_merge
from merging.recipe import ModelRef, Recipe
from merging.recipe_file import RecipeFile, read_recipe_file
from merging.request import Request
from merging.vocabulary import refuse_other_vocabularies
from storage.atomic import building_folder, refuse_existing

Locate = Callable[[str, str | None], Path]
"""(name, revision) to the folder of a model or an adapter."""

Place = Path | tuple[Path, Path]
"""A model, or a model and the adapter on top of it."""

_REQUESTED = frozenset(field.name for field in fields(Request))


@dataclass(frozen=True)
class LocatedFile:
    """A recipe file whose models have been found."""

    content: RecipeFile
    folders: Mapping[tuple[str, str | None], Path]
    """By name and revision."""

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        return self.content.recipes

    def place(self, ref: ModelRef, results: Mapping[str, Place]) -> Place:
        """Return where a model is; ``results`` are those of earlier documents by name."""
        earlier = results.get(ref.model) if ref.revision is None else None
        model = self.folders[ref.model, ref.revision] if earlier is None else earlier
        if ref.adapter is None or isinstance(model, tuple):
            return model
        return model, self.folders[ref.adapter, ref.adapter_revision]

    def arguments(self, recipe: Recipe, results: Mapping[str, Place], more: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of ``merge_checkpoints``: the recipe's, and those of ``more`` that are not None."""
        given: dict[str, Any] = {"method": recipe.method, "settings": recipe.settings, **recipe.arguments}
        given["inputs"] = [self.place(ref, results) for ref in recipe.inputs]
        if recipe.base is not None:
            given["base"] = _model(self.place(recipe.base, results))
        if isinstance(recipe.tokenizer, ModelRef):
            given["companions"] = _model(self.place(recipe.tokenizer, results))
        return given | {key: value for key, value in more.items() if value is not None}


def run_recipe(
    file: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    locate: Locate,
    compat: str | None = None,
    overwrite: bool = False,
    **arguments: Any,
) -> dict[str, Any]:
    """Carry out a recipe file, ours or mergekit's, into the folder ``output``.

    The last document is the result.  Results of earlier ones are written to a hidden folder beside the output and
    removed at the end, whatever the end is.  What can be refused is refused before the first of them is merged.

    Args:
        locate: finds the folder of a model or adapter by name and revision.
        compat: ``mergekit`` for mergekit's own numbers.
        overwrite: replace an output folder that exists.
        arguments: further arguments of ``merge_checkpoints`` for every document, such as ``memory``, ``threads``,
            ``device``, ``progress``, ``complete``; those that are not None win over the recipe's.

    Returns:
        The content of merge.json.

    Raises:
        ValueError: a mistake in the file or in what it names; nothing is left under ``output``.
    """
    located = _opened(file, output, locate, compat=compat, overwrite=overwrite)
    if len(located.recipes) > 1:
        planned = {key: value for key, value in arguments.items() if key not in ("progress", "complete", "hashes")}
        _plans(located, Path(output), overwrite=overwrite, **planned)
    *earlier, last = located.recipes
    with _results(located, earlier, Path(output), arguments) as results:
        given = located.arguments(last, results, {**arguments, "recipe": located.content.text})
        return merge_checkpoints(output=output, overwrite=overwrite, **given)


def plan_recipe(
    file: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    locate: Locate,
    compat: str | None = None,
    overwrite: bool = False,
    **arguments: Any,
) -> list[MergePlan]:
    """Return the plan of every document without merging anything.

    What a later document takes from an earlier one is not there yet; one of the earlier one's own inputs, which has the
    same tensors, stands in for it.

    Args:
        arguments: those of ``plan_merge`` (``memory``, ``threads``, ``device``, ``shard_bytes``) and of ``Request``.
    """
    located = _opened(file, output, locate, compat=compat, overwrite=overwrite)
    return _plans(located, Path(output), overwrite=overwrite, **arguments)


def locate_models(content: RecipeFile, locate: Locate) -> LocatedFile:
    """Find every model that the recipes name, but for the results of earlier documents."""
    names = {recipe.name for recipe in content.recipes} - {None}
    wanted: dict[tuple[str, str | None], None] = {}
    for ref in (ref for recipe in content.recipes for ref in recipe.models):
        if ref.revision is not None or ref.model not in names:
            wanted[ref.model, ref.revision] = None
        if ref.adapter is not None:
            wanted[ref.adapter, ref.adapter_revision] = None
    return LocatedFile(content, {key: locate(*key) for key in wanted})


def _opened(
    file: str | os.PathLike[str],
    output: str | os.PathLike[str],
    locate: Locate,
    *,
    compat: str | None,
    overwrite: bool,
) -> LocatedFile:
    """Read the file, say what in it has no effect, and find its models."""
    content = read_recipe_file(file, compat=compat)
    refuse_existing(output, overwrite=overwrite)
    for note in dict.fromkeys(note for recipe in content.recipes for note in recipe.notes):
        warnings.warn(f"{os.fspath(file)}: {note}", stacklevel=3)
    located = locate_models(content, locate)
    for recipe in located.recipes:
        _check_vocabularies(located, recipe)
    return located


@contextmanager
def _results(
    located: LocatedFile, recipes: Sequence[Recipe], output: Path, arguments: Mapping[str, Any]
) -> Iterator[dict[str, Place]]:
    """Carry out the earlier documents; yield their folders by name, and remove them in the end."""
    if not recipes:
        yield {}
        return
    # Built and renamed like any folder of ours, so that what a killed process left is cleared by the next one.
    shelf = output.absolute().parent / f".{output.name}.documents"
    with building_folder(shelf, overwrite=True) as folder:
        done: dict[str, Place] = {}
        for recipe in recipes:
            assert recipe.name is not None
            merge_checkpoints(output=folder / recipe.name, **located.arguments(recipe, done, arguments))
            done[recipe.name] = folder / recipe.name
    try:
        yield {name: shelf / name for name in done}
    finally:
        shutil.rmtree(shelf)


def _plans(located: LocatedFile, output: Path, *, overwrite: bool, **arguments: Any) -> list[MergePlan]:
    plans = []
    stand_ins = _stand_ins(located)
    for recipe in located.recipes:
        last = recipe is located.recipes[-1]
        if any(ref.revision is None and ref.model in _names(located) - stand_ins.keys() for ref in recipe.models):
            continue
        given = located.arguments(recipe, stand_ins, arguments)
        request = Request(**{key: value for key, value in given.items() if key in _REQUESTED})
        rest = {key: value for key, value in given.items() if key not in _REQUESTED}
        place = output if last else output.with_name(f".{output.name}.documents") / str(recipe.name)
        plans.append(plan_merge(request, place, overwrite=overwrite or not last, **rest))
    return plans


def _names(located: LocatedFile) -> set[str]:
    return {recipe.name for recipe in located.recipes if recipe.name is not None}


def _stand_ins(located: LocatedFile) -> dict[str, Place]:
    """Return for every result an input with the same tensors, none that is somewhere the base (which has a part of its own)."""
    bases = {recipe.base for recipe in located.recipes}
    found: dict[str, Place] = {}
    for recipe in located.recipes:
        refs = [
            ref
            for ref in recipe.inputs
            if ref not in bases and (ref.model not in _names(located) or ref.model in found)
        ]
        if recipe.name is not None and refs:
            found[recipe.name] = located.place(refs[0], found)
    return found


def _check_vocabularies(located: LocatedFile, recipe: Recipe) -> None:
    """Where the recipe speaks of tokenizers: refuse models that number their tokens differently."""
    if recipe.tokenizer is None:
        return
    folders = {
        str(ref): located.folders[ref.model, ref.revision]
        for ref in recipe.models
        if (ref.model, ref.revision) in located.folders
    }
    adapters = {name for name, folder in folders.items() if (folder / "adapter_config.json").is_file()}
    refuse_other_vocabularies({name: folder for name, folder in folders.items() if name not in adapters})


def _model(place: Place) -> Path:
    return place[0] if isinstance(place, tuple) else place
