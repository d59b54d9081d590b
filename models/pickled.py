"""Weights that a repository holds as pickles only, read without running what a pickle may run, and kept as safetensors."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from storage.atomic import building_folder
from storage.hashing import sha256_of
from storage.json_file import read_json, write_json
from storage.tensor_file import write_tensors

DEFAULT_CACHE = Path("~/.cache/embarc")
PICKLED = ("*.bin", "*.pt", "*.pth")
INDEX = ".bin.index.json"
COPIED = ("*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.safetensors")


def pickled_weights(folder: Path) -> list[Path]:
    """The pickled weight files of a model that has no safetensors beside them, its modules' included, in order."""
    return [
        file
        for file in sorted(each for pattern in PICKLED for each in folder.rglob(pattern))
        if file.name.startswith("pytorch_model") and not any(file.parent.glob("*.safetensors"))
    ]


def convert_pickled(folder: Path, *, cache: Path | None = None) -> Path:
    """A folder like `folder` whose weights are safetensors: made once for each content, whole or absent.

    A pickle is read with ``torch.load(weights_only=True)``, which builds tensors and refuses anything else.

    Args:
        folder: with pytorch_model.bin, or shards and their index, in it or in its modules' folders; a module whose
            weights are safetensors already is copied.
        cache: where to; None for ~/.cache/embarc. A snapshot of a hub cache keeps its hub id and commit.

    Raises:
        ValueError: a file that is no pickle of tensors, or would run code; names it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     torch.save({"weight": torch.ones(2)}, Path(place) / "pytorch_model.bin")
        ...     made = convert_pickled(Path(place), cache=Path(place) / "cache")
        ...     sorted(file.name for file in made.iterdir())
        ['model.safetensors']
    """
    weights = pickled_weights(folder)
    copied = sorted({each for pattern in COPIED for each in folder.rglob(pattern) if each.is_file()})
    digest = hashlib.sha256()
    for file in (*weights, *copied):
        digest.update(f"{file.relative_to(folder).as_posix()} {sha256_of(file)}\n".encode())
    target = (cache or DEFAULT_CACHE).expanduser().resolve() / "converted" / digest.hexdigest()[:32]
    inside = _place_inside(folder)
    if not target.is_dir():
        try:
            with building_folder(target) as building:
                _convert(folder, building / inside, weights, copied)
        except ValueError:
            # Another process, such as another rank, may have made it meanwhile.
            if not target.is_dir():
                raise
    return target / inside


def _convert(folder: Path, to: Path, weights: list[Path], copied: list[Path]) -> None:
    for file in (*copied, *weights):
        place = to / file.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        if file in weights:
            write_tensors(place.with_name(_renamed(file.name)), dict(_tensors(file)), metadata={"format": "pt"})
        elif file.name.endswith(INDEX):
            index = read_json(file)
            names = {tensor: _renamed(shard) for tensor, shard in index["weight_map"].items()}
            write_json(place.with_name("model.safetensors.index.json"), {**index, "weight_map": names})
        else:
            shutil.copyfile(file, place)


def _place_inside(folder: Path) -> Path:
    """The end of a hub snapshot's path, which says its hub id and commit; nothing for another folder."""
    is_snapshot = folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")
    return Path(*folder.parts[-3:]) if is_snapshot else Path()


def _renamed(name: str) -> str:
    return Path(name).stem.replace("pytorch_model", "model", 1) + ".safetensors"


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a pickle, none of which shares memory with another."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=_is_zip(file))
    except (pickle.UnpicklingError, RuntimeError, EOFError, UnicodeDecodeError) as error:
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line), "")
        raise ValueError(
            f"{file}: expected a pickle of tensors only, got one that cannot be read as such"
            f"{f' ({reason.strip()})' if reason else ''}; do not open it in another way, ask for safetensors"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(each, Tensor) for each in state.values()):
        raise ValueError(
            f"{file}: expected tensors by name, got {type(state).__name__} of other things; "
            "save the model's state_dict, as safetensors"
        )
    seen: set[int] = set()
    for name, tensor in state.items():
        shared = tensor.untyped_storage().data_ptr() in seen
        seen.add(tensor.untyped_storage().data_ptr())
        yield str(name), tensor.clone() if shared else tensor.contiguous()


def _is_zip(file: Path) -> bool:
    """Whether torch wrote it since 1.6; older files cannot be mapped into memory."""
    with file.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"
