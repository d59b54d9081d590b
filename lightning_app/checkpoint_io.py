"""SafetensorsIO: Lightning's checkpoints as a folder of safetensors + JSON; no pickle is written or read."""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from storage.atomic import building_folder
from storage.json_file import read_json, write_json
from storage.tensor_file import read_tensors, write_tensors

TENSORS, STRUCTURE = "state.safetensors", "state.json"


class SafetensorsIO(CheckpointIO):
    """A checkpoint is a folder: ``state.safetensors`` holds every tensor, ``state.json`` all the rest and where tensors go.

    What is neither a tensor nor a plain value is refused by its place in the checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write the folder beside its name and rename it."""
        tensors: dict[str, Tensor] = {}
        structure = _encode(checkpoint, "checkpoint", tensors)
        with building_folder(Path(path), overwrite=True) as folder:
            write_tensors(folder / TENSORS, tensors)
            write_json(folder / STRUCTURE, structure)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the folder; tensors arrive on the CPU."""
        folder = Path(path)
        if not (folder / STRUCTURE).is_file():
            raise ValueError(
                f"{folder}: expected a checkpoint folder with {STRUCTURE}, found none; start without --resume"
            )
        return _decode(read_json(folder / STRUCTURE), read_tensors(folder / TENSORS))

    def remove_checkpoint(self, path: Any) -> None:
        """Delete the folder."""
        shutil.rmtree(path, ignore_errors=True)


def _encode(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """A JSON value for ``value``; tensors move to ``tensors`` under their place."""
    if isinstance(value, Tensor):
        if value.numel() == 1 and value.is_floating_point() and not math.isfinite(value.item()):
            return {"$scalar": [str(value.item()), str(value.dtype).removeprefix("torch.")]}
        tensors[place] = value.detach().cpu().contiguous().clone()
        return {"$tensor": place}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _encode(item, f"{place}.{key}", tensors) for key, item in value.items()}
        items = [[key, _encode(item, f"{place}.{key}", tensors)] for key, item in value.items()]
        return {"$items": items}
    if isinstance(value, tuple):
        return {"$tuple": [_encode(item, f"{place}.{i}", tensors) for i, item in enumerate(value)]}
    if isinstance(value, list):
        return [_encode(item, f"{place}.{i}", tensors) for i, item in enumerate(value)]
    raise ValueError(
        f"{place}: expected tensors and plain values in a checkpoint, got {type(value).__name__}; keep it out of the state"
    )


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"$tensor": place}:
            return tensors[place]
        case {"$scalar": [number, dtype]}:
            return torch.tensor(float(number), dtype=getattr(torch, dtype))
        case {"$float": number}:
            return float(number)
        case {"$items": items}:
            return {key: _decode(item, tensors) for key, item in items}
        case {"$tuple": items}:
            return tuple(_decode(item, tensors) for item in items)
    return {key: _decode(item, tensors) for key, item in value.items()}
