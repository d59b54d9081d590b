"""PEFT LoRA adapters as checkpoints: opened with their base, and folded into it on the fly, a few rows at a time.

LoRA, rsLoRA, rank and alpha patterns, lora_bias, trained biases, modules saved whole, and DoRA; an adapter of
another kind is refused by name.  Reference: Hu et al. 2021, LoRA, arXiv:2106.09685.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from merging.adapter_base import base_of, refuse_quantised
from merging.adapter_config import CONFIG, WEIGHTS
from merging.adapter_file import Adapter, read_adapter
from merging.adapter_names import Place, Views, places_of
from merging.folding import Change, FoldedTensor, Placed, Replacement, Shift, Update, fold
from merging.sources import Checkpoint, TensorSource, as_matrix

__all__ = ["CONFIG", "WEIGHTS", "FoldedTensor", "base_of", "fold_adapter", "is_adapter", "open_adapter"]


def is_adapter(path: str | os.PathLike[str]) -> bool:
    """Say whether the folder is a PEFT adapter; a folder with both an adapter and whole weights is refused."""
    folder = Path(path)
    if not (folder / CONFIG).is_file():
        return False
    if (folder / "model.safetensors").exists() or (folder / "model.safetensors.index.json").exists():
        raise ValueError(f"{os.fspath(path)}: expected an adapter or a whole model, got both; remove one of them")
    return True


def open_adapter(path: str | os.PathLike[str], base: Checkpoint, views: Views | None = None) -> Checkpoint:
    """Return ``base`` with the adapter at ``path`` folded in.

    Args:
        path: the adapter's folder.
        base: the model it was trained on, in full precision.
        views: where tensors lie whose names in memory are not those on disk, fused ones for example.

    Raises:
        ValueError: the adapter is of a kind that is not supported, a key matches no tensor of the base or does
            not fit it, the adapter changes nothing, or the base is quantised; the message names the file and the key.
    """
    return fold_adapter(read_adapter(path), base, views)


def fold_adapter(adapter: Adapter, base: Checkpoint, views: Views | None = None) -> Checkpoint:
    """Return ``base`` with an adapter that was read already folded in; see ``open_adapter``."""
    refuse_quantised(base)
    tensors = dict(base.tensors)
    places = places_of(adapter.tensor_names, base, adapter.file, views)
    for name, change in _changes(adapter):
        place = places[name]
        _refuse_misfit(adapter, name, change, base.tensors[place.name], place)
        placed = Placed(place.start, place.stop, change)
        tensors[place.name] = fold(tensors[place.name], [placed], str(adapter.file))
    return Checkpoint(
        path=adapter.path,
        kind="adapter",
        folder=base.folder,
        tensors=tensors,
        transformer=base.transformer,
        base=base,
    )


def _changes(adapter: Adapter) -> Iterator[tuple[str, Change]]:
    """Yield what happens to each tensor; whole ones first, since lora_bias adds to a bias that was trained too."""
    for name, source in adapter.whole.items():
        yield name, Replacement(source)
    for module, factors in adapter.factors.items():
        yield adapter.weight_of(module), Update(factors)
        if factors.bias is not None:
            yield f"{module}.bias", Shift(factors.bias, factors.scale)


def _refuse_misfit(adapter: Adapter, name: str, change: Change, weight: TensorSource, place: Place) -> None:
    """Raise ValueError if a change is of another shape than the rows of the base that it is made to."""
    rows, columns = place.stop - place.start, as_matrix(weight.shape)[1]
    if isinstance(change, Update):
        factors, module = change.factors, name.removesuffix(".weight")
        if len(weight.shape) != 2 or factors.shape != (rows, columns):
            raise ValueError(
                f"{adapter.file}: {module}: expected factors for {[rows, *weight.shape[1:]]}, got A "
                f"{list(factors.a.shape)} and B {list(factors.b.shape)}; give the base that the adapter was trained "
                "on as --base"
            )
        return
    shape = tuple(change.by.shape) if isinstance(change, Shift) else change.source.shape
    if shape != ((rows, *weight.shape[1:]) if weight.shape else ()):
        raise ValueError(
            f"{adapter.file}: tensor {name}: expected shape {[rows, *weight.shape[1:]]} as in {weight.where}, got "
            f"{list(shape)}; give the base that the adapter was trained on as --base"
        )
