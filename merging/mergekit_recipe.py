"""mergekit's YAML, the part that makes sense for checkpoints of one model, read into the same ``Recipe`` as ours.

Keys, precedence and the part that the base plays follow mergekit 0.1.5 (Goddard et al. 2024, arXiv:2403.13257).
What has no counterpart here is refused by name; what has no effect is noted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from merging.mergekit_parts import WHOLE, Part, Scope, name_in_mergekit, parse_parts, parse_reference, role_of, unread
from merging.methods import METHODS, Method
from merging.recipe import ModelRef, Recipe, mapping_of, name_of, refuse_unknown, text_of
from merging.schedule import PER_INPUT, SHARED, LayerSlice, Schedule, Settings, shown

KNOWN = (
    *("name", "merge_method", "models", "slices", "modules", "base_model", "parameters", "dtype", "out_dtype"),
    *("tokenizer_source", "tokenizer", "chat_template", "compat"),
)
DTYPES = ("float32", "float16", "bfloat16", "float64")


def parse_mergekit_recipe(document: Mapping[str, Any], where: str, *, compat: str | None = None) -> Recipe:
    """Read a recipe in mergekit's form; ``where`` is the file and document that errors speak of.

    Args:
        compat: ``mergekit`` for mergekit's own numbers; wins over a key ``compat`` of the recipe.

    Raises:
        ValueError: an unknown key (with the closest), a method, layout or option that has no counterpart here (with
            what to do instead), or a value of another kind.

    >>> models = [{"model": "a", "parameters": {"weight": 1}}, {"model": "b@main+c", "parameters": {"weight": 3}}]
    >>> recipe = parse_mergekit_recipe({"merge_method": "linear", "models": models}, "example")
    >>> str(recipe.inputs[1]), recipe.settings.at("norm.weight", 12)
    ('b@main+c', {'weights': (1.0, 3.0)})
    """
    notes: list[str] = []
    refuse_unknown(document, KNOWN, where)
    row = _method(document, where)
    compat = compat or _optional_text(document, "compat", where)
    base = _base(document, where)
    scope = Scope(row, compat is not None, notes)
    parameters = mapping_of(document.get("parameters"), f"{where}: parameters")
    whole = {key: parameters[key] for key in WHOLE if key in parameters}
    told = scope.read({key: value for key, value in parameters.items() if key not in WHOLE}, f"{where}: parameters")
    parts = parse_parts(document, base, scope, where)
    order = _order(row, parts[0], base, joins="models" in document, weighed="weights" in told, where=where, notes=notes)
    settings = Settings(tuple(_slice(part, order, told) for part in parts))
    _check_normalize_weights(whole, settings, where)
    sources = parts[0].sources
    return Recipe(
        method=row.name,
        inputs=tuple(base if index is None else sources[index].ref for index in order),  # type: ignore[misc]
        base=base,
        settings=settings,
        arguments={
            "space": "task_vector" if role_of(row) == "origin" and base is not None else "weight",
            **_granularity(whole, row, compat is not None, where, notes),
            **_dtype(document, where, notes),
            **({} if compat is None else {"compat": compat}),
        },
        tokenizer=_tokenizer(document, base, where, notes),
        name=name_of(document, where),
        notes=tuple(dict.fromkeys(notes)),
    )


def _method(document: Mapping[str, Any], where: str) -> Method:
    name = document.get("merge_method")
    known = [row for row in METHODS if role_of(METHODS[row])]
    if not isinstance(name, str) or name not in known:
        hint = "write our own form, with method:" if name in METHODS else "choose one of them"
        raise ValueError(f"{where}: merge_method: expected one of {', '.join(known)}, got {shown(name)}; {hint}")
    return METHODS[name]


def _base(document: Mapping[str, Any], where: str) -> ModelRef | None:
    if document.get("base_model") is None:
        return None
    base = parse_reference(document["base_model"], f"{where}: base_model")
    if base.adapter is not None:
        raise ValueError(
            f"{where}: base_model: expected a whole model, got {shown(str(base))}; fold the adapter in by an earlier "
            "document with merge_method: passthrough and a name, and give that name"
        )
    return base


def _order(
    row: Method, part: Part, base: ModelRef | None, *, joins: bool, weighed: bool, where: str, notes: list[str]
) -> list[int | None]:
    """Return which sources are the inputs, in order; None stands for a base that is not among them but takes part.

    mergekit adds the base to ``models`` (not to ``slices``) where it is not among them, whatever the method.
    """
    refs = [source.ref for source in part.sources]
    everyone: list[int | None] = list(range(len(refs)))
    role = role_of(row)
    if base is None:
        if role == "end" or row.needs_base:
            raise ValueError(f"{where}: base_model: expected the base of {row.name}, got none; add base_model")
        return everyone
    if role == "origin":
        silent = [source for source in part.sources if source.ref == base and source.told]
        notes += [unread(name_in_mergekit(key), "the base is told nothing") for source in silent for key in source.told]
        return [index for index, ref in enumerate(refs) if ref != base]
    added: list[int | None] = [None] if joins and base not in refs else []
    if role == "end":
        order = everyone + added
        if len(order) != 2 or (base not in refs and not added):
            raise ValueError(
                f"{where}: {row.name}: expected base_model and one other model, got {shown(str(base))} as the base and "
                f"{len(refs)} models; name the base and what it is merged with"
            )
        return order if order[0] is None or refs[order[0]] == base else order[::-1]
    if row.name == "karcher" or (row.name == "linear" and weighed):
        return everyone + added
    if added:
        notes.append("base_model: gives tokenizer and configuration only, since it is not among the models")
    return everyone


def _slice(part: Part, order: list[int | None], told: Mapping[str, Schedule]) -> LayerSlice:
    """Settle precedence: what stands with a source goes before its slice's, and that before the recipe's."""

    def chain(key: str, *scopes: Mapping[str, Schedule]) -> Schedule | None:
        found = None
        for scope in scopes:
            if key in scope:
                found = scope[key] if found is None else found.then(scope[key])
        return found

    own = [{} if index is None else part.sources[index].told for index in order]
    shared = {key: chain(key, own[0] if key == "scale" else {}, part.told, told) for key in SHARED}
    each = {key: tuple(chain(key, one, part.told, told) for one in own) for key in PER_INPUT}
    return LayerSlice(
        part.layers,
        {key: value for key, value in shared.items() if value is not None},
        {key: values for key, values in each.items() if any(values)},
    )


def _granularity(
    whole: Mapping[str, Any], row: Method, compat: bool, where: str, notes: list[str]
) -> dict[str, Literal["row", "column"]]:
    """Return what has an angle of its own, if not the whole tensor.

    With ``nuslerp_row_wise`` mergekit's documentation promises row vectors and its code takes columns, and the other
    way round without.  Here rows are taken; under ``compat``, what mergekit takes.
    """
    switches = {key: _switch(value, f"{where}: parameters.{key}") for key, value in whole.items()}
    foreign = {"filter_wise": "model_stock", "normalize_weights": "multislerp"}
    notes += [
        unread(key, f"{row.name} does not read it") for key in switches if foreign.get(key, "nuslerp") != row.name
    ]
    if row.name == "model_stock" and switches.get("filter_wise"):
        return {"granularity": "row"}
    if row.name != "nuslerp" or switches.get("nuslerp_flatten", True):
        return {}
    by_name = switches.get("nuslerp_row_wise", False)
    if compat:
        return {"granularity": "column" if by_name else "row"}
    other = "columns (what its documentation calls rows)" if by_name else "rows (what its documentation calls columns)"
    notes.append(f"nuslerp_row_wise: angles are taken between rows of the stored matrices here; mergekit takes {other}")
    return {"granularity": "row"}


def _check_normalize_weights(whole: Mapping[str, Any], settings: Settings, where: str) -> None:
    """Refuse weights that are to stay as they are, unless they sum to 1 anyway."""
    if "normalize_weights" not in whole or _switch(
        whole["normalize_weights"], f"{where}: parameters.normalize_weights"
    ):
        return
    for part in settings.slices:
        weights = [one for one in part.per_input.get("weights", ()) if one is not None]
        total = math.fsum(one.at("", 0.0) or 0.0 for one in weights if one.is_constant)
        if not all(one.is_constant for one in weights) or (weights and not math.isclose(total, 1, abs_tol=1e-6)):
            raise ValueError(
                f"{where}: normalize_weights: expected true, got false with weights that do not sum to 1; scale them "
                "to sum 1 (a mean direction has no length that other sums could change)"
            )


def _dtype(document: Mapping[str, Any], where: str, notes: list[str]) -> dict[str, str]:
    """Return the dtype of the result: ``out_dtype``, or else ``dtype``."""
    given = {}
    for key in ("dtype", "out_dtype"):
        value = _optional_text(document, key, where)
        if value is not None:
            given[key] = value.removeprefix("torch.")
            if given[key] not in DTYPES:
                raise ValueError(
                    f"{where}: {key}: expected one of {', '.join(DTYPES)}, got {shown(value)}; choose one of them"
                )
    if given.get("dtype", "float32") not in ("float32", "float64"):
        notes.append(f"dtype: {given['dtype']} is what mergekit computes in; here sums are exact to float32 or better")
    chosen = given.get("out_dtype") or given.get("dtype")
    return {} if chosen is None else {"dtype": chosen}


def _tokenizer(
    document: Mapping[str, Any], base: ModelRef | None, where: str, notes: list[str]
) -> ModelRef | Literal["base", "union"] | None:
    """Return whose tokenizer the result has."""
    template = document.get("chat_template")
    if template == "auto":
        notes.append(unread("chat_template", "the template comes with the tokenizer"))
    elif template is not None:
        raise ValueError(
            f"{where}: chat_template: expected it left out or auto, got {shown(template)}; the tokenizer's own is "
            "carried over, write another into chat_template.jinja of the result"
        )
    source, place = document.get("tokenizer_source"), f"{where}: tokenizer_source"
    if document.get("tokenizer") is not None:
        if source is not None:
            raise ValueError(f"{where}: expected tokenizer_source or tokenizer, got both; remove one of them")
        place = f"{where}: tokenizer"
        settings = mapping_of(document["tokenizer"], place)
        refuse_unknown(settings, ("source", "tokens", "pad_to_multiple_of"), place)
        for key in ("tokens", "pad_to_multiple_of"):
            if settings.get(key) is not None:
                raise ValueError(
                    f"{place}: {key}: expected models of one vocabulary, which stays as it is, got "
                    f"{shown(settings[key])}; resize the embeddings of the models before they are merged"
                )
        source = settings.get("source", "union")
    if source is None:
        return None
    if source == "base" and base is None:
        raise ValueError(f"{place}: expected base_model for the tokenizer of the base, got none; add base_model")
    if source == "base":
        return "base"
    return (
        "union" if source == "union" else replace(parse_reference(source, place), adapter=None, adapter_revision=None)
    )


def _switch(value: Any, where: str) -> bool:
    told = Schedule.parse(value, where, flag=True)
    if not told.is_constant:
        raise ValueError(f"{where}: expected true or false for the whole merge, got {shown(value)}; write one of them")
    return bool(told.at("", 0.0))


def _optional_text(document: Mapping[str, Any], key: str, where: str) -> str | None:
    return None if document.get(key) is None else text_of(document[key], f"{where}: {key}")
