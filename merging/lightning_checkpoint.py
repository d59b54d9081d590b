"""Lightning checkpoints (.ckpt) as inputs: the weights of an embedder inside a LightningModule, read upon a base.

Such a file is a pickle; it is opened by torch's restricted reader, which builds tensors and plain containers
only, and its tensors stay on disk until they are read (mmap).  It has neither configuration nor tokenizer, and
its names begin with the attributes of somebody's module (``model.``, ``embedder.0.auto_model.``): the base gives
the former, and the names of the base tell where the latter end.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from jaxtyping import Shaped
from torch import Tensor

from merging.names import memory_views, model_type_of, transformer_names
from merging.sources import Checkpoint, HeldTensor, TensorSource, as_matrix
from storage.json_file import read_json

WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch.compile, FSDP and activation checkpointing add inside names."""

ADAPTER_PARTS = (".lora_A.", ".lora_B.", ".base_layer.")
SHOWN = 3

# What torch.load raises for a file that is damaged or is something else; found by feeding it such files.
UNREADABLE = (
    *(UnpicklingError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError, AssertionError),
    *(ArithmeticError, struct.error),
)


@dataclass(frozen=True)
class JoinedTensor:
    """A tensor that is stored whole on disk and held in parts in memory: their rows, one after the other."""

    parts: tuple[HeldTensor, ...]

    @property
    def where(self) -> str:
        return self.parts[0].where

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    def rows(self, start: int, stop: int) -> Shaped[Tensor, "rows columns"]:
        found, begin = [], 0
        for part in self.parts:
            end = begin + part.shape[0]
            if begin < stop and start < end:
                found.append(part.rows(max(start, begin) - begin, min(stop, end) - begin))
            begin = end
        _, columns = as_matrix(self.shape)
        return torch.cat(found) if found else torch.empty(0, columns, dtype=self.dtype)

    def held(self) -> HeldTensor:
        return HeldTensor(self.rows(0, self.shape[0]).reshape(self.shape), self.where)


def open_lightning_checkpoint(path: str | os.PathLike[str], base: Checkpoint | None) -> Checkpoint:
    """Return the model whose weights are in the checkpoint and whose folder is that of ``base``.

    The names of the base's tensors (or those they have in memory, see ``merging.names``) are looked for at the end
    of the checkpoint's names.  What stands before most of them is the place of the transformer; Dense layers are
    looked for beside it, under their place in modules.json.  Optimizer state, and weights in other places (losses,
    heads), are left aside; ``notes`` of the result names the latter.  A tensor that the base has and the checkpoint
    lacks is simply absent here: ``refuse_disagreement`` names it.

    Raises:
        ValueError: there is no base or no such file, it cannot be opened without running code, it holds no state
            dict, LoRA factors instead of whole weights, nothing that the base has, or several models like the base.
    """
    given = os.fspath(path)
    if base is None:
        raise ValueError(
            f"{given}: expected a base beside a Lightning checkpoint, for its configuration, tokenizer and modules, "
            "got none; add --base"
        )
    state = _state_dict(Path(path))
    place, tensors = _find_transformer(state, base, given)
    found = {base.transformer + inner: tensor for inner, tensor in tensors.items()}
    taken = {name for name in state if name.startswith(place)}
    for folder, key in _other_modules(base).items():
        inner_names = {name.removeprefix(folder): name for name in base.tensors if name.startswith(folder)}
        free = [name for name in state if name not in taken]
        for begin in _places(free, inner_names, f"{key}.", given):
            for inner, name in inner_names.items():
                found[name] = HeldTensor(state[begin + inner], given)
                taken.add(begin + inner)
    aside = [name for name in state if name not in taken]
    shown = ", ".join(aside[:SHOWN]) + (f" and {len(aside) - SHOWN} more" if len(aside) > SHOWN else "")
    order = [*(name for name in base.tensors if name in found), *(name for name in found if name not in base.tensors)]
    return Checkpoint(
        path=given,
        kind="lightning",
        folder=base.folder,
        tensors={name: found[name] for name in order},
        transformer=base.transformer,
        base=base,
        notes=(f"{given}: {shown} left aside, not part of the embedder",) if aside else (),
    )


def _state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors under ``state_dict``, without what wrappers add to their names."""
    if path.is_dir():
        raise ValueError(
            f"{path}: expected one file, got a folder (a sharded checkpoint); "
            "run python -m lightning.pytorch.utilities.consolidate_checkpoint on it"
        )
    if not path.is_file():
        raise ValueError(f"{path}: expected a Lightning checkpoint, got nothing there; check the path")
    try:
        content = torch.load(path, mmap=True, weights_only=True, map_location="cpu")
    except UNREADABLE as error:
        raise ValueError(
            f"{path}: expected a checkpoint that opens with weights_only, got one that does not ({_reason(error)}); "
            "save {'state_dict': module.state_dict()} alone with torch.save"
        ) from None
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ValueError(
            f"{path}: expected a Lightning checkpoint with 'state_dict', got none; save it with Trainer.save_checkpoint"
        )
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            continue
        if any(part in f".{name}" for part in ADAPTER_PARTS):
            raise ValueError(
                f"{path}: tensor {name}: expected whole weights, got a part of a LoRA adapter; "
                "save the adapter with save_pretrained and give its folder"
            )
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise ValueError(
                f"{path}: tensor {name}: expected plain dense values, got {tensor.layout} {tensor.dtype}; convert it"
            )
        for wrapper in WRAPPERS:
            name = name.replace(wrapper, "")
        tensors[name] = tensor
    return tensors


def _reason(error: BaseException) -> str:
    """Return the one line of torch's message that says what it refused."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line.partition("WeightsUnpickler error:")[2].strip() for line in lines if "WeightsUnpickler error:" in line]
    return (told or lines or [type(error).__name__])[0].split(". ")[0][:200]


def _find_transformer(state: Mapping[str, Tensor], base: Checkpoint, given: str) -> tuple[str, dict[str, TensorSource]]:
    """Return where the transformer is, and its tensors under the names of the base's files (without its folder)."""
    stored = {name: inner for inner, name in transformer_names(base).items()}
    in_memory: dict[str, list[str]] = {inner: [] for inner in stored.values()}
    for part, view in memory_views(base, model_type_of(base)).items():
        in_memory[stored[view.name]].append(part)
    on_disk = {inner: [inner] for inner in in_memory}
    ranked = []
    for layout in (on_disk, in_memory):
        wanted = {part for parts in layout.values() for part in parts}
        votes = _votes(state, wanted)
        ranked += [(count, place, layout, wanted) for place, count in votes.items()]
    if not ranked:
        raise ValueError(
            f"{given}: expected the tensors of {base.path} under some prefix, got none of them; "
            "give the base that the checkpoint was trained from as --base"
        )
    count, place, layout, wanted = max(ranked, key=lambda row: row[0])
    rivals = sorted({other for number, other, _, _ in ranked if number == count})
    if len(rivals) > 1:
        _refuse_several(rivals, given)
    tensors: dict[str, TensorSource] = {}
    for inner, parts in layout.items():
        held = tuple(HeldTensor(state[place + part], given) for part in parts if place + part in state)
        if len(held) == len(parts):
            tensors[inner] = held[0] if len(held) == 1 else _join(held, parts, given)
    more = {name.removeprefix(place): tensor for name, tensor in state.items() if name.startswith(place)}
    tensors |= {inner: HeldTensor(tensor, given) for inner, tensor in more.items() if inner not in wanted}
    return place, tensors


def _join(held: tuple[HeldTensor, ...], parts: Collection[str], given: str) -> JoinedTensor:
    kinds = {(part.dtype, part.shape[1:], bool(part.shape)) for part in held}
    if len(kinds) > 1 or not held[0].shape:
        raise ValueError(
            f"{given}: expected {', '.join(parts)} of one width and dtype, as they are one tensor on disk, got others; "
            "save the checkpoint again"
        )
    return JoinedTensor(held)


def _votes(names: Iterable[str], wanted: Collection[str]) -> Counter[str]:
    """Count, for everything that stands before a wanted name at a dot, how many of the wanted names follow it."""
    votes: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for at in range(len(parts)):
            if ".".join(parts[at:]) in wanted:
                votes["".join(f"{part}." for part in parts[:at])] += 1
    return votes


def _other_modules(base: Checkpoint) -> dict[str, str]:
    """Return {folder and slash: key in the Sequential} of the modules after the transformer that have weights."""
    if base.kind != "sentence-transformers":
        return {}
    folders = {name.rpartition("/")[0] + "/" for name in base.tensors if "/" in name} - {base.transformer}
    modules = read_json(base.folder / "modules.json")
    return {f"{row['path']}/": str(row.get("name", row.get("idx"))) for row in modules if f"{row['path']}/" in folders}


def _places(names: Iterable[str], wanted: Collection[str], ending: str, given: str) -> list[str]:
    """Return the one place, ending in the module's key, that has all the wanted names; none if there is none."""
    places = [place for place, count in _votes(names, wanted).items() if count == len(wanted)]
    fitting = sorted(place for place in places if place == ending or place.endswith(f".{ending}"))
    if len(fitting) > 1:
        _refuse_several(fitting, given)
    return fitting


def _refuse_several(places: Collection[str], given: str) -> None:
    shown = ", ".join(repr(place) for place in places)
    raise ValueError(f"{given}: expected one model like the base, got several, under {shown}; save one of them alone")
