"""The models of a recipe in mergekit's form: references, ``models`` and ``slices``, and what is said beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from merging.methods import Method
from merging.recipe import ModelRef, mapping_of, refuse_unknown, text_of
from merging.schedule import FLAGS, PER_INPUT, Schedule, shown

Role = Literal["member", "end", "origin"]

_ORIGIN = (
    *("nuslerp", "multislerp", "model_stock", "sce", "task_arithmetic", "ties", "dare_linear", "dare_ties"),
    *("della", "della_linear", "breadcrumbs", "breadcrumbs_ties"),
)
_ROLES: Mapping[str, Role] = {
    **dict.fromkeys(("linear", "karcher", "passthrough"), "member"),
    "slerp": "end",
    **dict.fromkeys(_ORIGIN, "origin"),
}

OURS = {"weight": "weights", "lambda": "scale"}
"""Parameters that have another name here."""

PARAMETERS = ("weight", "density", "gamma", "epsilon", "t", "lambda", "scale", "normalize", "rescale", "select_topk")
WHOLE = ("nuslerp_flatten", "nuslerp_row_wise", "filter_wise", "normalize_weights")
"""Switches that are said once, for the whole merge."""

UNNEEDED = {
    "int8_mask": "sign masks take no memory here",
    "embed_slerp": "mergekit does not read it either",
    "eps": "zero vectors are dealt with exactly here",
    "max_iter": "the mean is iterated until it stands still",
    "tol": "the mean is iterated until it stands still",
}


@dataclass(frozen=True)
class Source:
    """A model of a slice, and what is said about it."""

    ref: ModelRef
    told: Mapping[str, Schedule]


@dataclass(frozen=True)
class Part:
    """A slice: the models it is made of, and what is said about all of them."""

    layers: tuple[int, int] | None
    """None for the whole model."""
    sources: tuple[Source, ...]
    told: Mapping[str, Schedule]


@dataclass(frozen=True)
class Scope:
    """Reads what is said at one place: by the names of ``Settings``, without what the method does not read."""

    row: Method
    compat: bool
    notes: list[str]
    """Grows by what has no effect."""

    def read(self, parameters: Mapping[str, Any], where: str, *, of_input: bool = False) -> dict[str, Schedule]:
        """Return the schedules of a ``parameters`` mapping; ``of_input`` for one that stands with a model."""
        refuse_unknown(parameters, (*PARAMETERS, *UNNEEDED, *WHOLE), where)
        told = {}
        for key, value in parameters.items():
            if key in WHOLE:
                raise ValueError(
                    f"{where}.{key}: expected it among the parameters of the whole recipe, got it here; move it"
                )
            ours = OURS.get(key, key)
            if reason := UNNEEDED.get(key) or self._unread(key, ours, of_input):
                self.notes.append(unread(key, reason))
            else:
                told[ours] = Schedule.parse(value, f"{where}.{key}", flag=ours in FLAGS)
        return told

    def _unread(self, key: str, ours: str, of_input: bool) -> str | None:
        """Return why a parameter has no effect; None if it has one."""
        row = self.row
        passes = row.name == "passthrough"
        if ours not in row.takes or (key == "t" and row.name != "slerp"):
            return f"{row.name} does not read it"
        if ours == "scale" and (key == "scale") != passes:
            return f"{row.name} reads {'scale' if passes else 'lambda'}"
        if self.compat and row.name == "karcher":
            return "mergekit's karcher has no weights"
        if of_input and ours not in PER_INPUT and not passes:
            return "it is said for the whole merge, not for a model"
        return None


def role_of(row: Method) -> Role | None:
    """Return what base_model is to a method of mergekit; None for a method that mergekit does not have.

    ``member``: a model like the others; ``end``: the end t = 0; ``origin``: what differences are taken from.
    """
    return _ROLES.get(row.name)


def name_in_mergekit(key: str) -> str:
    """Return what mergekit calls one of our parameters."""
    return next((theirs for theirs, ours in OURS.items() if ours == key), key)


def unread(key: str, reason: str) -> str:
    """Return the note on a key without effect."""
    return f"{key}: without effect, {reason}"


def parse_reference(value: Any, where: str) -> ModelRef:
    """Read ``path[@revision][+adapter[@revision]]``, or the same as a mapping ``{model, lora}``.

    >>> parse_reference("org/base@main+ckpt/adapter", "example")
    ModelRef(model='org/base', revision='main', adapter='ckpt/adapter', adapter_revision=None)
    """
    if isinstance(value, str):
        chunks = value.split("+")
        if len(chunks) > 2:
            raise ValueError(
                f"{where}: expected path[@revision][+adapter[@revision]], got {shown(value)}; write a path that "
                "contains + or @ as {model: {path: ...}, lora: {path: ...}}"
            )
        value = dict(zip(("model", "lora"), chunks, strict=False))
    told = mapping_of(value, where)
    refuse_unknown(told, ("model", "lora"), where)
    model, revision = _path(told.get("model"), f"{where}: model")
    adapter, adapter_revision = (None, None) if told.get("lora") is None else _path(told["lora"], f"{where}: lora")
    return ModelRef(model, revision, adapter, adapter_revision)


def _path(value: Any, where: str) -> tuple[str, str | None]:
    if isinstance(value, Mapping):
        refuse_unknown(value, ("path", "revision"), where)
        revision = value.get("revision")
        return text_of(value.get("path"), where), None if revision is None else text_of(revision, f"{where}: revision")
    path, *revisions = text_of(value, where).split("@")
    if len(revisions) > 1:
        raise ValueError(f"{where}: expected at most one @, got {shown(value)}; write {{path: ..., revision: ...}}")
    return text_of(path, where), text_of(revisions[0], f"{where}: revision") if revisions else None


def parse_parts(document: Mapping[str, Any], base: ModelRef | None, scope: Scope, where: str) -> tuple[Part, ...]:
    """Return the slices of a recipe, each with the same models in the same order; one for ``models``.

    Raises:
        ValueError: not exactly one of models and slices, layers that are not the same in all sources or that leave
            a gap, other models from slice to slice, a part in the wrong form.
    """
    given = [key for key in ("models", "slices", "modules") if document.get(key)]
    if given == ["modules"]:
        raise ValueError(
            f"{where}: modules: expected models or slices, got modules; the modules of a sentence-transformers folder "
            "are merged together, use models"
        )
    if len(given) != 1:
        raise ValueError(
            f"{where}: expected models or slices, got {' and '.join(given) or 'neither'}; give one of them"
        )
    entries, place = document[given[0]], f"{where}: {given[0]}"
    if not isinstance(entries, list):
        raise ValueError(f"{place}: expected a list, got {shown(entries)}; write one entry per line")
    if given == ["models"]:
        return (Part(None, _sources(entries, scope, place, ("model", "parameters")), {}),)
    parts = [_part(entry, base, scope, f"{place}[{i}]") for i, entry in enumerate(entries)]
    _check_layers(parts, place)
    return tuple(_aligned(part, parts[0], f"{place}[{i}]") for i, part in enumerate(parts))


def _part(entry: Any, base: ModelRef | None, scope: Scope, where: str) -> Part:
    told = mapping_of(entry, where)
    refuse_unknown(told, ("sources", "base_model", "parameters"), where)
    if told.get("base_model") is not None and parse_reference(told["base_model"], f"{where}: base_model") != base:
        raise ValueError(
            f"{where}: base_model: expected the base_model of the recipe, got {shown(told['base_model'])}; "
            "give one base for all slices"
        )
    entries = told.get("sources")
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{where}: sources: expected a list of models, got {shown(entries)}; write one per line")
    place = f"{where}.sources"
    sources = _sources(entries, scope, place, ("model", "layer_range", "parameters"))
    if len({source.ref for source in sources}) < len(sources):
        raise ValueError(f"{place}: expected each model once, got one twice; remove it or add its weights up")
    ranges = [_range(entry.get("layer_range"), f"{place}[{i}].layer_range") for i, entry in enumerate(entries)]
    if len(set(ranges)) > 1:
        raise ValueError(
            f"{place}: expected one layer_range for all models, got {', '.join(map(str, map(list, ranges)))}; "
            "layers are merged with their own kind only, stacking is not supported"
        )
    return Part(ranges[0], sources, scope.read(mapping_of(told.get("parameters"), where), f"{where}.parameters"))


def _sources(entries: Sequence[Any], scope: Scope, where: str, known: Sequence[str]) -> tuple[Source, ...]:
    sources = []
    for i, entry in enumerate(entries):
        place = f"{where}[{i}]"
        told = mapping_of(entry, place)
        refuse_unknown(told, known, place)
        parameters = mapping_of(told.get("parameters"), f"{place}.parameters")
        read = scope.read(parameters, f"{place}.parameters", of_input=True)
        sources.append(Source(parse_reference(told.get("model"), f"{place}.model"), read))
    return tuple(sources)


def _range(value: Any, where: str) -> tuple[int, int]:
    whole = isinstance(value, list) and all(isinstance(end, int) and not isinstance(end, bool) for end in value)
    if not whole or len(value) != 2 or not 0 <= value[0] < value[1]:
        raise ValueError(f"{where}: expected [first, end] with 0 <= first < end, got {shown(value)}; correct it")
    return value[0], value[1]


def _check_layers(parts: Sequence[Part], where: str) -> None:
    """Refuse slices that are not the layers in order; that they end at the last is checked with the models."""
    end = 0
    for i, part in enumerate(parts):
        assert part.layers is not None
        if part.layers[0] != end:
            raise ValueError(
                f"{where}[{i}]: expected a layer_range that starts at {end}, where the one before ends, got "
                f"{list(part.layers)}; cover every layer once and in order, stacking is not supported"
            )
        end = part.layers[1]


def _aligned(part: Part, first: Part, where: str) -> Part:
    """Return the slice with its sources in the order of the first slice's."""
    by_ref = {source.ref: source for source in part.sources}
    refs = [source.ref for source in first.sources]
    if set(by_ref) != set(refs):
        raise ValueError(
            f"{where}.sources: expected the models of the first slice, got {shown(sorted(map(str, by_ref)))}; "
            "give a model that takes no part the weight 0"
        )
    return Part(part.layers, tuple(by_ref[ref] for ref in refs), part.told)
