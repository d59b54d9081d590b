"""What adapters of one base change, part by part: the weight of a module, a bias, a tensor that was trained whole.

A part is what a tensor is to a merge of whole models: it has angles and coefficients of its own.  Its vectors are the
true differences from the base, so that merging them is merging the folded models.

Dimensions: n inputs; rows and columns, those of the tensor seen as a matrix; r and c, those of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from merging.adapter import fold_adapter
from merging.adapter_file import Adapter, Factors
from merging.adapter_names import Place, places_of
from merging.low_rank import span_of
from merging.names import memory_views, model_type_of
from merging.pieces import row_ranges
from merging.sources import Checkpoint, TensorSource

Kind = Literal["module", "lora_bias", "whole"]


@dataclass(frozen=True, eq=False)
class Part:
    """One tensor of the base, and what each adapter makes of it."""

    key: str
    """The module's name for ``module`` and ``lora_bias``, the tensor's for ``whole``; as in the adapters' files."""
    kind: Kind
    name: str
    """Of the tensor in the base, or in memory if no base is known: for errors, random masks and the report."""
    shape: tuple[int, ...]
    deltas: Callable[[int, int], Float64[Tensor, "n rows columns"]]
    """Rows ``start`` to ``stop`` of the differences from the base; zeros where an adapter does not touch it."""
    updates: tuple[Factors | None, ...] = ()
    """Of a module, one per input."""
    weight: Callable[[int, int], Float64[Tensor, "rows columns"]] | None = None
    """Rows of the base's own tensor, where the base is known."""

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def is_low_rank(self) -> bool:
        """Whether every difference is a product of factors: a DoRA update is none."""
        return self.kind == "module" and all(each is None or each.magnitude is None for each in self.updates)

    def vectors(self) -> Callable[[], Iterator[Float64[Tensor, "n m"]]]:
        """Return a function that yields the differences chunk by chunk; low-rank ones as coordinates in their span."""
        if self.is_low_rank:
            cores = span_of(self.updates).cores.flatten(1)
            return lambda: iter([cores])
        return lambda: (self.deltas(start, stop).flatten(1) for start, stop in row_ranges(self.shape))

    def walk(self) -> Iterator[Float32[Tensor, "n r c"]]:
        """Yield the differences in float32 for an element method; a vector is one row."""
        for start, stop in row_ranges(self.shape):
            chunk = self.deltas(start, stop).to(torch.float32)
            yield chunk if len(self.shape) > 1 else chunk.mT


def parts_of(adapters: Sequence[Adapter], base: Checkpoint | None) -> list[Part]:
    """Return the parts of ``adapters``, which must have been compared by ``refuse_misfits``.

    Raises:
        ValueError: a name of an adapter is not in the base or of another shape there.
    """
    modules = list(dict.fromkeys(module for adapter in adapters for module in adapter.factors))
    whole = list(dict.fromkeys(name for adapter in adapters for name in adapter.whole))
    biased = [
        module
        for module in modules
        if any(adapter.factors[module].bias is not None for adapter in adapters if module in adapter.factors)
    ]
    grounds = None if base is None else _Grounds.of(adapters, base)
    parts = [_module_part(module, adapters, grounds) for module in modules]
    # A bias that was trained whole by one adapter and is shifted by another is one tensor: a whole one.
    parts += [_bias_part(module, adapters, grounds) for module in biased if f"{module}.bias" not in whole]
    if whole:
        assert grounds is not None, "the base was not asked for"
        parts += [_whole_part(name, grounds) for name in whole]
    return parts


@dataclass(frozen=True)
class _Grounds:
    """The base, and each adapter folded into it."""

    base: Checkpoint
    places: dict[str, Place]
    folded: tuple[Checkpoint, ...]

    @classmethod
    def of(cls, adapters: Sequence[Adapter], base: Checkpoint) -> _Grounds:
        views = memory_views(base, model_type_of(base))
        places: dict[str, Place] = {}
        taken: dict[Place, str] = {}
        for adapter in adapters:
            for name, place in places_of(adapter.tensor_names, base, adapter.file, views).items():
                if (twin := taken.setdefault(place, name)) != name:
                    raise ValueError(
                        f"{adapter.file}: expected one name for tensor {place.name} of {base.path} in all adapters, got "
                        f"{twin} and {name}; save the adapters from the same class of model"
                    )
                places[name] = place
        return cls(base, places, tuple(fold_adapter(adapter, base, views) for adapter in adapters))

    def weight(self, name: str) -> Callable[[int, int], Float64[Tensor, "rows columns"]]:
        place = self.places[name]
        return lambda start, stop: _rows(self.base.tensors[place.name], place, start, stop)

    def deltas(self, name: str) -> Callable[[int, int], Float64[Tensor, "n rows columns"]]:
        place = self.places[name]
        weight = self.weight(name)

        def rows(start: int, stop: int) -> Float64[Tensor, "n rows columns"]:
            each = [_rows(model.tensors[place.name], place, start, stop) for model in self.folded]
            return torch.stack(each) - weight(start, stop)

        return rows

    def shape(self, name: str) -> tuple[int, ...]:
        place, shape = self.places[name], self.base.tensors[self.places[name].name].shape
        return (place.stop - place.start, *shape[1:]) if shape else ()


def _rows(source: TensorSource, place: Place, start: int, stop: int) -> Float64[Tensor, "rows columns"]:
    return source.rows(place.start + start, place.start + stop).to(torch.float64)


def _module_part(module: str, adapters: Sequence[Adapter], grounds: _Grounds | None) -> Part:
    updates = tuple(adapter.factors.get(module) for adapter in adapters)
    shape = next(update.shape for update in updates if update is not None)
    name = adapters[0].weight_of(module)

    def products(start: int, stop: int) -> Float64[Tensor, "n rows columns"]:
        zeros = torch.zeros(stop - start, shape[1], dtype=torch.float64)
        return torch.stack(
            [
                zeros if each is None else each.scale * (each.b[start:stop].double() @ each.a.double())
                for each in updates
            ]
        )

    if grounds is None:
        return Part(module, "module", name, shape, products, updates)
    place = grounds.places[name]
    if all(each is None or each.magnitude is None for each in updates):
        return Part(module, "module", place.name, shape, products, updates, grounds.weight(name))
    return Part(module, "module", place.name, shape, grounds.deltas(name), updates, grounds.weight(name))


def _bias_part(module: str, adapters: Sequence[Adapter], grounds: _Grounds | None) -> Part:
    updates = [adapter.factors.get(module) for adapter in adapters]
    size = next(update.shape[0] for update in updates if update is not None)
    shifts = torch.zeros(len(updates), size, 1, dtype=torch.float64)
    for row, update in zip(shifts, updates, strict=True):
        if update is not None and update.bias is not None:
            row += update.scale * update.bias.double().unsqueeze(1)
    name = f"{module}.bias"
    known = name if grounds is None else grounds.places[name].name
    return Part(module, "lora_bias", known, (size,), lambda start, stop: shifts[:, start:stop])


def _whole_part(name: str, grounds: _Grounds) -> Part:
    place = grounds.places[name].name
    return Part(name, "whole", place, grounds.shape(name), grounds.deltas(name), (), grounds.weight(name))


def refuse_misfits(adapters: Sequence[Adapter]) -> None:
    """Raise ValueError if a module or tensor has another shape in another adapter, or the bases are laid out differently."""
    seen: dict[str, tuple[tuple[int, ...], Adapter]] = {}
    for adapter in adapters:
        if adapter.config.transposed != adapters[0].config.transposed:
            raise ValueError(
                f"{adapter.config.file}: expected fan_in_fan_out = {adapters[0].config.transposed} as in "
                f"{adapters[0].path}, got {adapter.config.transposed}; merge adapters of one base"
            )
        shapes = {module: factors.shape for module, factors in adapter.factors.items()}
        for name, shape in (shapes | {name: source.shape for name, source in adapter.whole.items()}).items():
            wanted, first = seen.setdefault(name, (shape, adapter))
            if shape != wanted:
                raise ValueError(
                    f"{adapter.file}: {name}: expected shape {list(wanted)} as in {first.path}, got {list(shape)}; "
                    "merge adapters of one base"
                )
        _refuse_shifted_names(adapter, adapters[0])


def _refuse_shifted_names(adapter: Adapter, first: Adapter) -> None:
    """Two adapters that share no name, while one's are the other's behind a prefix, were saved from different classes."""
    if adapter.factors.keys() & first.factors.keys():
        return
    for got, expected in product(adapter.factors, first.factors):
        if got.endswith(f".{expected}") or expected.endswith(f".{got}"):
            raise ValueError(
                f"{adapter.file}: expected module {expected} as in {first.path}, got {got}; save both adapters from "
                "the same class of model"
            )


def refuse_non_finite(part: Part, adapters: Sequence[Adapter]) -> None:
    """Name the adapter whose NaN or infinite values spoiled a part, with their count."""
    counts = torch.zeros(len(adapters), dtype=torch.int64)
    for start, stop in row_ranges(part.shape):
        counts += (~part.deltas(start, stop).isfinite()).flatten(1).sum(1)
    for adapter, count in zip(adapters, counts.tolist(), strict=True):
        if count:
            raise ValueError(
                f"{adapter.file}: tensor {part.name}: expected finite values, got {count} that are NaN or infinite, "
                "here or in the base; train or export that model again"
            )
    raise ValueError(f"tensor {part.name}: expected values whose squares fit into float64, got larger; rescale it")
