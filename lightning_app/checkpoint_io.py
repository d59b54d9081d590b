"""SafetensorsIO: Lightning's checkpoints as a folder of safetensors + JSON; no pickle is written or read."""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from storage.atomic import building_folder, remove_leftovers, restore
from storage.disk_space import DiskFull, check_room
from storage.json_file import read_json, write_json
from storage.tensor_file import read_tensors, write_tensors

TENSORS, STRUCTURE = "state.safetensors", "state.json"
ALWAYS_FINITE = ("state_dict", "optimizer_states")
"""Parts of a checkpoint in which no value may be NaN or infinite; elsewhere single ones may be, such as a metric."""
ROOM_BESIDE = 2**16
"""Bytes of room that a state takes besides its tensors: names, plain values, whole blocks of the disk."""


def find_state(path: str | Path) -> Path | None:
    """The folder of a saved state, or None if nothing was saved under that name.

    What a process that was killed while it replaced the folder had moved aside gets its name back first.

    >>> find_state("runs/a-name-that-is-free/resume/1-broad") is None
    True
    """
    folder = restore(path)
    return folder if (folder / STRUCTURE).is_file() else None


class SafetensorsIO(CheckpointIO):
    """A checkpoint is a folder: ``state.safetensors`` holds every tensor, ``state.json`` all the rest and where tensors go.

    What is neither a tensor nor a plain value is refused by its place in the checkpoint, and so are weights and states of
    the optimiser that are not finite. Whatever refuses or fails, the state that was there before is kept.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write the folder beside its name and let it take the name in one step.

        Raises:
            ValueError: a value that is neither plain nor a tensor, or that is not finite (named).
            DiskFull: there is no room for it; says how much it takes, and which step's state is kept.
        """
        folder = Path(path)
        for part in ALWAYS_FINITE:
            _refuse_non_finite(checkpoint.get(part), part, folder)
        tensors: dict[str, Tensor] = {}
        structure = _encode(checkpoint, "checkpoint", tensors)
        needed = sum(tensor.nbytes for tensor in tensors.values()) + ROOM_BESIDE
        try:
            remove_leftovers(folder)  # it takes room, too
            check_room(folder, needed)
            with building_folder(folder, overwrite=True) as building:
                write_tensors(building / TENSORS, tensors)
                write_json(building / STRUCTURE, structure)
        except DiskFull as error:
            raise DiskFull(error.path, error.reason, needed=needed, advice=_advice(folder)) from error

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the folder; tensors arrive on the CPU."""
        folder = find_state(path)
        if folder is None:
            raise ValueError(
                f"{path}: expected a checkpoint folder with {STRUCTURE}, found none; start without --resume"
            )
        tensors = read_tensors(folder / TENSORS)
        try:
            return _decode(read_json(folder / STRUCTURE), tensors)
        except KeyError as error:
            raise ValueError(
                f"{folder / TENSORS}: expected the tensor {error.args[0]} of {STRUCTURE}, found none; remove {folder}"
            ) from None

    def remove_checkpoint(self, path: Any) -> None:
        """Delete the folder."""
        shutil.rmtree(path, ignore_errors=True)


def _refuse_non_finite(value: Any, place: str, folder: Path) -> None:
    """Of whatever shape; `write_tensors` looks at what is larger than one element elsewhere."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_non_finite(item, f"{place}.{key}", folder)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _refuse_non_finite(item, f"{place}.{i}", folder)
    elif isinstance(value, Tensor) and value.is_floating_point():
        if broken := int((~torch.isfinite(value.detach())).sum()):
            raise _non_finite(f"tensor {place}", f"{broken} that are NaN or infinite", folder)
    elif isinstance(value, float) and not math.isfinite(value):
        raise _non_finite(place, str(value), folder)


def _non_finite(what: str, got: str, folder: Path) -> ValueError:
    return ValueError(
        f"{folder}: {what}: expected finite values, got {got}; nothing was written, {_kept(folder)}; "
        "lower --stages.N.learning-rate or raise --temperature"
    )


def _kept(folder: Path) -> str:
    """Which state stands under the name, in words."""
    state = find_state(folder)
    if state is None:
        return "no state of this stage was saved before"
    before = read_json(state / STRUCTURE)
    return f"the state of epoch {before.get('epoch')}, step {before.get('global_step')} is kept"


def _advice(folder: Path) -> str:
    return f"{_kept(folder)}; make room and go on with --resume"


def _encode(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """A JSON value for ``value``; tensors move to ``tensors`` under their place."""
    if isinstance(value, Tensor):
        if value.dim() == 0 and value.is_floating_point() and not math.isfinite(value.item()):
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
