"""A recipe: one merge written down in YAML, under the names of ``merge_checkpoints``.

    method: karcher
    base: tiny-llm
    inputs:
      - runs/a/stages/1-broad
      - {model: tiny-llm, adapter: runs/b/stages/2-six, weight: [0, 1]}
    granularity: row

Where a parameter of the method takes a number it also takes a gradient over the layers or filters by name, see
``merging.schedule``; ``t`` and the like are said once, ``weight``, ``density``, ``gamma`` and ``epsilon`` beside each
input.  As in ``merge_checkpoints``, ``weights`` may also be a list with one per input, and ``density``, ``gamma`` and
``epsilon`` such a list or one number for all.  mergekit's form is read by ``merging.mergekit_recipe``, files of several
recipes by ``merging.recipe_file``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

from merging.methods import METHODS, Method
from merging.schedule import FLAGS, SHARED, Schedule, Settings, shown

EACH = {"weight": "weights", "density": "density", "gamma": "gamma", "epsilon": "epsilon"}
"""What may stand beside an input, and its name in ``Settings``."""

TEXTS = ("space", "granularity", "norm", "antipodal", "compat", "dtype")
SWITCHES = ("extrapolate",)
INTEGERS = ("seed",)
KNOWN = ("name", "method", "base", "inputs", "weights", *SHARED, *TEXTS, *SWITCHES, *INTEGERS)
KNOWN_OF_ALL = (*KNOWN, "density", "gamma", "epsilon")
REFERENCE = ("model", "revision", "adapter", "adapter_revision")


@dataclass(frozen=True)
class ModelRef:
    """A model by folder, hub id or the name of an earlier recipe; with an adapter on top, or an adapter alone."""

    model: str
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    adapter: str | None = None
    adapter_revision: str | None = None

    def __str__(self) -> str:
        model = self.model if self.revision is None else f"{self.model}@{self.revision}"
        if self.adapter is None:
            return model
        return f"{model}+{self.adapter}" + ("" if self.adapter_revision is None else f"@{self.adapter_revision}")

    def plain(self) -> dict[str, str]:
        """Return what is said, by the keys of a recipe."""
        return {key: value for key in REFERENCE if (value := getattr(self, key)) is not None}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What ``merge_checkpoints`` needs for one merge, models still by name."""

    method: str
    inputs: tuple[ModelRef, ...]
    base: ModelRef | None = None
    settings: Settings = field(default_factory=Settings)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of ``merge_checkpoints`` that the recipe gives: ``space``, ``granularity``, ``dtype``..."""
    tokenizer: ModelRef | Literal["base", "union"] | None = None
    """Whose tokenizer the result has (mergekit's ``tokenizer_source``); None for the base's, unchecked."""
    name: str | None = None
    """What later recipes of the file call the result."""
    notes: tuple[str, ...] = ()
    """Keys that were read and have no effect, each with the reason."""

    @property
    def models(self) -> tuple[ModelRef, ...]:
        """Every model that is named."""
        others = (self.base, self.tokenizer)
        return tuple(dict.fromkeys((*self.inputs, *(ref for ref in others if isinstance(ref, ModelRef)))))

    def plain(self) -> dict[str, Any]:
        """Return the recipe as JSON-ready values: the keys of our own form, per-input ones beside the inputs."""
        told = self.settings.plain()
        inputs: list[Any] = [ref.plain() for ref in self.inputs]
        for key, plural in EACH.items():
            for entry, value in zip(inputs, told.pop(plural, ()), strict=False):
                entry |= {} if value is None else {key: value}
        inputs = [entry["model"] if list(entry) == ["model"] else entry for entry in inputs]
        plain = {"name": self.name, "method": self.method, "base": _plain_reference(self.base), "inputs": inputs}
        plain |= {**told, **self.arguments, "tokenizer": _plain_reference(self.tokenizer)}
        return {key: value for key, value in plain.items() if value is not None}


def parse_recipe(document: Mapping[str, Any], where: str, *, compat: str | None = None) -> Recipe:
    """Read a recipe of our own form; ``where`` is the file and document that errors speak of.

    ``compat`` wins over the recipe's own.

    Raises:
        ValueError: an unknown key (with the closest), a missing one, or a value of another kind; what depends on
            the models themselves is left to ``merge_checkpoints``.

    >>> recipe = parse_recipe({"method": "slerp", "inputs": ["a", "b"], "t": [0, 1]}, "example")
    >>> recipe.settings.at("layers.1.mlp.weight", 3)
    {'t': 0.5}
    """
    refuse_unknown(document, KNOWN_OF_ALL, where)
    method = method_of(document, "method", where)
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise ValueError(f"{where}: inputs: expected a list of models, got {shown(inputs)}; write one per line")
    entries = [_input(value, f"{where}: inputs[{i}]") for i, value in enumerate(inputs)]
    base = document.get("base")
    return Recipe(
        method=method.name,
        inputs=tuple(_reference(entry, f"{where}: inputs[{i}]") for i, entry in enumerate(entries)),
        base=None if base is None else _reference(_input(base, f"{where}: base", ()), f"{where}: base"),
        settings=_settings(document, entries, where),
        arguments=_arguments(document, where) | ({} if compat is None else {"compat": compat}),
        name=name_of(document, where),
    )


def refuse_unknown(mapping: Mapping[Any, Any], known: Collection[str], where: str) -> None:
    """Raise ValueError for the first key that is not ``known``, with the closest that is."""
    for key in mapping:
        if key not in known:
            close = get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}"
            raise ValueError(f"{where}: expected known keys, got {shown(key)}; {hint}")


def mapping_of(value: Any, where: str) -> Mapping[str, Any]:
    """Return a mapping; an empty one for nothing."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: expected keys and values, got {shown(value)}; indent them under it")
    return value


def method_of(document: Mapping[str, Any], key: str, where: str) -> Method:
    """Return the row of the method that the document names."""
    name = document.get(key)
    if not isinstance(name, str) or name not in METHODS:
        close = get_close_matches(name, METHODS, n=1, cutoff=0.5) if isinstance(name, str) else []
        hint = f"did you mean {close[0]}?" if close else "choose one of them"
        raise ValueError(f"{where}: {key}: expected one of {', '.join(METHODS)}, got {shown(name)}; {hint}")
    return METHODS[name]


def name_of(document: Mapping[str, Any], where: str) -> str | None:
    """Return the recipe's name, which becomes a folder's."""
    name = document.get("name")
    if name is None:
        return None
    if not isinstance(name, str) or not name or name.startswith(".") or not set(name).isdisjoint("/\\@+\0"):
        raise ValueError(f"{where}: name: expected a word without / \\ @ +, got {shown(name)}; rename it")
    return name


def text_of(value: Any, where: str) -> str:
    """Return a text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"{where}: expected text, got {shown(value)}; write a name, in quotes if it looks like a number"
        )
    return value


def _input(value: Any, where: str, extra: Collection[str] = tuple(EACH)) -> Mapping[str, Any]:
    """Return a model's entry as a mapping with known keys."""
    entry = {"model": value} if isinstance(value, str) else value
    if not isinstance(entry, Mapping):
        raise ValueError(
            f"{where}: expected a model or {{model: ..., ...}}, got {shown(value)}; write its folder or name"
        )
    refuse_unknown(entry, (*REFERENCE, *extra), where)
    return entry


def _reference(entry: Mapping[str, Any], where: str) -> ModelRef:
    if entry.get("model") is None:
        raise ValueError(f"{where}: expected a model, got none; add model: FOLDER (an adapter may stand there alone)")
    if entry.get("adapter_revision") is not None and entry.get("adapter") is None:
        raise ValueError(f"{where}: adapter_revision: expected an adapter beside it, got none; add adapter: FOLDER")
    return ModelRef(**{key: text_of(entry[key], f"{where}: {key}") for key in REFERENCE if entry.get(key) is not None})


def _settings(document: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], where: str) -> Settings:
    shared = {
        key: Schedule.parse(document[key], f"{where}: {key}", flag=key in FLAGS)
        for key in SHARED
        if document.get(key) is not None
    }
    return Settings.parse(shared, {plural: _each(document, entries, key, where) for key, plural in EACH.items()})


def _each(
    document: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], key: str, where: str
) -> list[Schedule | None]:
    """Return a parameter of every input: what stands beside it, or else what is said once."""
    own = [
        None if entry.get(key) is None else Schedule.parse(entry[key], f"{where}: inputs[{i}].{key}")
        for i, entry in enumerate(entries)
    ]
    said, place = document.get(EACH[key]), f"{where}: {EACH[key]}"
    if said is None:
        return own
    if key != "weight" and not isinstance(said, list):
        once = Schedule.parse(said, place)
        return [once if one is None else one.then(once) for one in own]
    if any(one is not None for one in own):
        raise ValueError(f"{place}: expected it in one place, got it beside the inputs too; remove one of them")
    if not isinstance(said, list) or len(said) != len(entries):
        raise ValueError(
            f"{place}: expected a list of {len(entries)}, one per input, got {shown(said)}; correct it (a gradient over "
            "the layers stands beside its input)"
        )
    return [Schedule.parse(value, f"{place}[{i}]") for i, value in enumerate(said)]


def _arguments(document: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the arguments that are no schedules, checked for their kind; ``merge_checkpoints`` knows the choices."""
    kinds: tuple[tuple[Sequence[str], Callable[[Any], bool], str], ...] = (
        (TEXTS, lambda value: isinstance(value, str), "text"),
        (SWITCHES, lambda value: isinstance(value, bool), "true or false"),
        (INTEGERS, lambda value: isinstance(value, int) and not isinstance(value, bool), "an integer"),
    )
    given = {}
    for names, fits, expected in kinds:
        for key in names:
            value = document.get(key)
            if value is not None and not fits(value):
                raise ValueError(f"{where}: {key}: expected {expected}, got {shown(value)}; correct it")
            if value is not None:
                given[key] = value
    return given


def _plain_reference(ref: ModelRef | str | None) -> Any:
    if not isinstance(ref, ModelRef):
        return ref
    plain = ref.plain()
    return ref.model if list(plain) == ["model"] else plain
