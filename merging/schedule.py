"""Parameters that differ from tensor to tensor: by layer (gradients), by name (filters), by slice of layers.

A value is a number; a list of numbers, which is a gradient over the layers, linear between its knots; or a list of
``{filter, value}``, where the first entry whose filter is part of the tensor's name wins.  The form, the precedence
and the numbers are those of mergekit's recipes (Goddard et al. 2024, arXiv:2403.13257).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from reprlib import Repr
from typing import Any

Number = int | float  # both named: what checks types at run time does not take an int for a float
Value = float | bool | tuple[float, ...]
"""What a tensor is told: one number or flag, or one number per input."""

FLAGS = frozenset({"normalize", "rescale"})
SHARED = ("t", "scale", "normalize", "rescale", "select_topk")
PER_INPUT = ("weights", "density", "gamma", "epsilon")
UNSAID = {"density": 1.0, "gamma": 0.01, "epsilon": 0.15}
"""What an input has that is told nothing while others are; as in mergekit."""

_SHORT = Repr()
_SHORT.maxlevel = 2
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80

LAYER = re.compile(r"(?:^|[./])(?:layers?|h|blocks?)\.(\d+)\.")
BEFORE = re.compile(r"embed(?!_out)|emb_ln|(?:^|[./])(?:wte|wpe|shared)\.")


def layer_of(name: str) -> int | None:
    """Return the number of the layer that a tensor belongs to; None for those before and after the layers.

    >>> layer_of("model.layers.12.mlp.up_proj.weight"), layer_of("embeddings.word_embeddings.weight")
    (12, None)
    """
    found = LAYER.search(name)
    return int(found[1]) if found else None


def layer_count(names: Iterable[str]) -> int:
    """Return how many layers a model with these tensors has; 0 if no name tells of a layer.

    >>> layer_count(["h.0.ln.weight", "h.1.ln.weight", "wte.weight"])
    2
    """
    return max((layer for name in names if (layer := layer_of(name)) is not None), default=-1) + 1


def shown(value: Any) -> str:
    """Return a value for an error message: one short line, however large or deep the value is."""
    return _SHORT.repr(value)


@dataclass(frozen=True)
class Entry:
    """The knots of a gradient (one for a constant) for the tensors whose name contains ``filter``."""

    knots: tuple[float, ...] | tuple[bool, ...]
    filter: str | None = None
    """None for every tensor."""

    def at(self, position: Number) -> float | bool:
        """Return the value at ``position`` in [0, 1]; of flags, the knot at or before it."""
        scaled = position * (len(self.knots) - 1)
        left = int(scaled)
        if isinstance(self.knots[0], bool):
            return self.knots[left]
        right = min(left + 1, len(self.knots) - 1)
        share = scaled - left
        return (1 - share) * self.knots[left] + share * self.knots[right]


@dataclass(frozen=True)
class Schedule:
    """One parameter as a function of the tensor's name and its position among the layers."""

    entries: tuple[Entry, ...]
    where: str = field(default="", compare=False)
    """The place it was read from, which errors speak of."""

    @classmethod
    def parse(cls, value: Any, where: str, *, flag: bool = False) -> Schedule:
        """Read a number, a list of numbers or a list of ``{filter, value}``; with ``flag``, of true and false.

        Numbers that YAML leaves as text (``1e-5``) are read as numbers.  An entry without a filter, or with the
        filter ``*``, speaks of every tensor.

        Raises:
            ValueError: anything else; the message names the place ``where`` it stands.

        >>> steps = Schedule.parse([{"filter": "mlp", "value": [0, 1]}, {"value": "1e-5"}], "t")
        >>> steps.at("layers.3.mlp.weight", 0.25), steps.at("norm.weight", 0.0)
        (0.25, 1e-05)
        """
        if isinstance(value, Mapping):
            value = [value]
        if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            entries = tuple(_entry(item, f"{where}, entry {i}", flag) for i, item in enumerate(value, 1))
        else:
            entries = (Entry(_knots(value, where, flag)),)
        return cls(entries, where)

    def at(self, name: str, position: Number) -> float | bool | None:
        """Return the value for a tensor; None if no entry speaks of it."""
        for entry in self.entries:
            if entry.filter is None or entry.filter in name:
                return entry.at(position)
        return None

    @property
    def is_constant(self) -> bool:
        """Whether every tensor is told the same."""
        return all(entry.filter is None and len(entry.knots) == 1 for entry in self.entries)

    def then(self, other: Schedule) -> Schedule:
        """Return the schedule that asks ``other`` where this one has no answer."""
        return (
            self
            if any(entry.filter is None for entry in self.entries)
            else Schedule(self.entries + other.entries, self.where)
        )

    def plain(self) -> Any:
        """Return the value that ``parse`` reads as this schedule."""
        values = [list(entry.knots) if len(entry.knots) > 1 else entry.knots[0] for entry in self.entries]
        if len(values) == 1 and self.entries[0].filter is None:
            return values[0]
        return [
            {"value": value} if entry.filter is None else {"filter": entry.filter, "value": value}
            for entry, value in zip(self.entries, values, strict=True)
        ]


@dataclass(frozen=True)
class LayerSlice:
    """What is said about a run of layers, and with the first and last of them about the tensors around."""

    layers: tuple[int, int] | None = None
    """First layer and the one after the last; None for all."""
    shared: Mapping[str, Schedule] = field(default_factory=dict)
    """By a name of ``SHARED``."""
    per_input: Mapping[str, tuple[Schedule | None, ...]] = field(default_factory=dict)
    """By a name of ``PER_INPUT``: one schedule per input, None for an input that nothing is said about."""

    def at(self, name: str, position: Number) -> dict[str, Value]:
        """Return what is said about a tensor.

        Raises:
            ValueError: ``t`` or ``weights`` are given, but not for this tensor (of every input).
        """
        values: dict[str, Value] = {}
        for key, schedule in self.shared.items():
            value = schedule.at(name, position)
            if value is not None:
                values[key] = value
            elif key == "t":
                raise ValueError(_unsaid(schedule.where or "t", name))
        for key, schedules in self.per_input.items():
            found = [None if schedule is None else schedule.at(name, position) for schedule in schedules]
            if key == "weights" and None in found:
                silent = schedules[found.index(None)]
                where = f"weight of input {found.index(None) + 1}" if silent is None else silent.where
                raise ValueError(_unsaid(where, name))
            if any(value is not None for value in found):
                values[key] = tuple(UNSAID[key] if value is None else float(value) for value in found)
        return values


@dataclass(frozen=True)
class Settings:
    """The parameters of a merge, settled tensor by tensor."""

    slices: tuple[LayerSlice, ...] = (LayerSlice(),)
    """One for all layers, or several that together are the layers in order."""

    @classmethod
    def constant(
        cls,
        *,
        t: Number | None = None,
        weights: Sequence[Number] | None = None,
        density: Sequence[Number] | None = None,
        gamma: Sequence[Number] | None = None,
        epsilon: Sequence[Number] | None = None,
        scale: Number | None = None,
        normalize: bool | None = None,
        rescale: bool | None = None,
        select_topk: Number | None = None,
    ) -> Settings:
        """Return settings that are the same for every tensor; what is None is left to the method's default.

        >>> Settings.constant(weights=[1, 3], normalize=True).at("norm.weight", 12)
        {'normalize': True, 'weights': (1.0, 3.0)}
        """
        shared = {"t": t, "scale": scale, "normalize": normalize, "rescale": rescale, "select_topk": select_topk}
        each = {"weights": weights, "density": density, "gamma": gamma, "epsilon": epsilon}
        return cls.parse(shared, each)

    @classmethod
    def parse(cls, shared: Mapping[str, Any], per_input: Mapping[str, Sequence[Any] | None]) -> Settings:
        """Return settings for all layers from values that may be schedules; None says nothing."""
        return cls((parse_slice(shared, per_input),))

    @property
    def is_constant(self) -> bool:
        """Whether every tensor is told the same."""
        return all(one.is_constant for one in self._schedules()) and len(self.slices) == 1

    def at(self, name: str, layers: int) -> dict[str, Value]:
        """Return the settings of a tensor, of a model with this number of layers.

        Keys are names of ``SHARED`` and ``PER_INPUT``; one that is missing has its default.  The position in a
        gradient is index / (count - 1) inside the slice, 1 in a slice of one layer.  Tensors before the layers
        (embeddings) are told what position 0 of the first slice says, those after what position 0 of the last says.

        Raises:
            ValueError: the slices are not the layers of the model, or ``t`` or the weights leave this tensor out.
        """
        last = self.slices[-1].layers
        if last is not None and last[1] != layers:
            raise ValueError(
                f"slices: expected layer ranges that end at {layers}, the number of layers of the models, "
                f"got {list(last)} as the last; cover every layer"
            )
        layer = layer_of(name)
        if layer is None:
            return self.slices[0 if BEFORE.search(name) else -1].at(name, 0.0)
        for part in self.slices:
            start, stop = part.layers or (0, layers)
            if start <= layer < stop:
                return part.at(name, (layer - start) / (stop - start - 1) if stop - start > 1 else 1.0)
        raise AssertionError(f"{name}: layer {layer} of {layers}")

    def idle_filters(self, names: Iterable[str]) -> list[str]:
        """Return the filters that are part of no tensor's name: most likely misspelt."""
        filters = {entry.filter for one in self._schedules() for entry in one.entries if entry.filter is not None}
        return sorted(filters.difference(*({one for one in filters if one in name} for name in names)))

    def _schedules(self) -> Iterator[Schedule]:
        for part in self.slices:
            yield from part.shared.values()
            for schedules in part.per_input.values():
                yield from (one for one in schedules if one is not None)

    def plain(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values, under the names of ``merge_checkpoints``."""
        parts = [_plain_slice(part) for part in self.slices]
        if len(parts) == 1 and self.slices[0].layers is None:
            return parts[0]
        return {"slices": [{"layers": list(p.layers or ()), **q} for p, q in zip(self.slices, parts, strict=True)]}


def parse_slice(
    shared: Mapping[str, Any],
    per_input: Mapping[str, Sequence[Any] | None],
    *,
    layers: tuple[int, int] | None = None,
) -> LayerSlice:
    """Return a slice from values that may be schedules, parsed or not; None says nothing."""
    unknown = sorted((set(shared) - set(SHARED)) | (set(per_input) - set(PER_INPUT)))
    assert not unknown, unknown
    return LayerSlice(
        layers,
        {key: _schedule(value, key) for key, value in shared.items() if value is not None},
        {
            key: tuple(None if value is None else _schedule(value, key, i) for i, value in enumerate(values, 1))
            for key, values in per_input.items()
            if values is not None and any(value is not None for value in values)
        },
    )


def _schedule(value: Any, key: str, place: int | None = None) -> Schedule:
    if isinstance(value, Schedule):
        return value
    return Schedule.parse(value, key if place is None else f"{key}, input {place}", flag=key in FLAGS)


def _entry(item: Any, where: str, flag: bool) -> Entry:
    """Read ``{filter, value}``."""
    if not isinstance(item, Mapping) or "value" not in item:
        raise ValueError(f"{where}: expected {{filter: ..., value: ...}}, got {shown(item)}; give each entry a value")
    if unknown := [key for key in item if key not in ("filter", "value")]:
        close = get_close_matches(str(unknown[0]), ("filter", "value"), n=1, cutoff=0.1)
        raise ValueError(
            f"{where}: expected filter and value, got {shown(unknown[0])}; closest: {''.join(close) or 'value'}"
        )
    chosen = item.get("filter")
    if chosen is not None and not isinstance(chosen, str):
        raise ValueError(f"{where}: expected a filter that is part of a tensor's name, got {shown(chosen)}; quote it")
    return Entry(_knots(item["value"], where, flag), None if chosen == "*" else chosen)


def _knots(value: Any, where: str, flag: bool) -> tuple[float, ...] | tuple[bool, ...]:
    items = list(value) if isinstance(value, list | tuple) else [value]
    if not items:
        raise ValueError(f"{where}: expected at least one value, got an empty list; give a number or leave it out")
    if flag:
        return tuple(_flag(item, where) for item in items)
    return tuple(_number(item, where) for item in items)


def _flag(value: Any, where: str) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    raise ValueError(f"{where}: expected true or false, got {shown(value)}; write one of them")


def _number(value: Any, where: str) -> float:
    number = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"{where}: expected a finite number, a list of numbers or a list of {{filter, value}}, got {shown(value)}; "
            "correct it"
        )
    return number


def _unsaid(where: str, name: str) -> str:
    return (
        f"{where}: expected a value for tensor {name}, got filters that do not speak of it; add an entry {{value: ...}}"
    )


def _plain_slice(part: LayerSlice) -> dict[str, Any]:
    shared = {key: schedule.plain() for key, schedule in part.shared.items()}
    each = {key: [one.plain() if one else None for one in schedules] for key, schedules in part.per_input.items()}
    return {**shared, **each}
