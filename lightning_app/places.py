"""Where the tensors of a checkpoint lie in the embedder that was loaded from it, to change its weights in place."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from merging.names import RowView, memory_views, model_type_of
from merging.sources import Checkpoint, as_matrix
from storage.json_file import read_json


@dataclass(frozen=True)
class Places:
    """The weights of an embedder, each with the rows of the stored tensor that it is."""

    weights: tuple[tuple[Tensor, RowView], ...]
    shapes: Mapping[str, tuple[int, ...]]
    """Of the stored tensors that are read, by name."""
    unread: frozenset[str]
    """Stored tensors that the embedder does without: a head, positions."""


def find_places(embedder: SentenceTransformer, checkpoint: Checkpoint) -> Places:
    """Follow every weight of the embedder to its tensor on disk.

    Names differ by the module's folder on one side and its number on the other, by a prefix such as ``model.``, and by what
    ``merging.names`` knows.  That a name was followed rightly is proved by its values: they must be those of the file.

    Args:
        embedder: as ``load_embedder`` gives it.
        checkpoint: the folder it was loaded from.

    Raises:
        ValueError: a weight of the embedder that cannot be followed, as where the library stores it in another form.
    """
    views = _views_by_module(checkpoint)
    weights: list[tuple[Tensor, RowView]] = []
    for name, parameter in embedder.named_parameters():
        module, _, inner = name.partition(".")
        view = _ending_alike(inner, views.get(int(module), {}))
        if view is None or not torch.equal(parameter.detach().cpu(), _stored(checkpoint, view, parameter)):
            got = "no such tensor" if view is None else f"other values in {view.name}"
            raise ValueError(
                f"{checkpoint.path}: expected the weight {name} of the loaded model under its own name on disk, got {got}; "
                "a search needs a model that is stored as it is loaded, so choose --t or --weights without --search"
            )
        weights.append((parameter, view))
    shapes = {view.name: checkpoint.tensors[view.name].shape for _, view in weights}
    return Places(tuple(weights), shapes, frozenset(checkpoint.tensors) - shapes.keys())


def load_tensors(places: Places, tensors: Mapping[str, Tensor]) -> None:
    """Write ``tensors``, under their names on disk, into the embedder: each weight gets its tensor, each tensor its place.

    Raises:
        ValueError: a tensor that is missing, unknown or of another shape, by name; nothing has been written then.
    """
    for name in sorted(places.shapes.keys() ^ (tensors.keys() - places.unread)):
        expected, got = ("it", "none") if name in places.shapes else ("no such tensor", "one")
        raise ValueError(f"tensor {name}: expected {expected} as in the base, got {got}; merge checkpoints of the base")
    for name, shape in places.shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(
                f"tensor {name}: expected shape {list(shape)} as in the base, got {list(tensors[name].shape)}; "
                "merge checkpoints of the base"
            )
    with torch.no_grad():
        for parameter, view in places.weights:
            rows = tensors[view.name].reshape(as_matrix(places.shapes[view.name]))[view.start : view.stop]
            parameter.copy_(rows.reshape(parameter.shape))


def _views_by_module(checkpoint: Checkpoint) -> dict[int, dict[str, RowView]]:
    """What each module has, by the module's number and the name inside it."""
    listing = checkpoint.folder / "modules.json"
    paths = [module["path"].strip("/") for module in read_json(listing)] if listing.is_file() else [""]
    views = {0: memory_views(checkpoint, model_type_of(checkpoint))}
    for index, path in enumerate(paths[1:], 1):
        views[index] = {
            name.removeprefix(f"{path}/"): RowView(name, 0, as_matrix(source.shape)[0])
            for name, source in checkpoint.tensors.items()
            if name.rpartition("/")[0] == path and path
        }
    return views


def _ending_alike(inner: str, views: Mapping[str, RowView]) -> RowView | None:
    """The view whose name is the end of a parameter's name, or the other way round; the longest of several."""
    alike = [name for name in views if f".{inner}".endswith(f".{name}") or f".{name}".endswith(f".{inner}")]
    return views[max(alike, key=len)] if alike else None


def _stored(checkpoint: Checkpoint, view: RowView, parameter: Tensor) -> Tensor:
    rows = checkpoint.tensors[view.name].rows(view.start, view.stop)
    same_size = rows.numel() == parameter.numel()
    return rows.reshape(parameter.shape if same_size else -1).to(parameter.dtype)
