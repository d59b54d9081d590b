"""What surrounds the weights of a model folder: tokenizer, configuration, modules, prompts, code that it names.

It is carried over to the merged folder.  Weights in any format stay behind, since they would be the old
ones, and so do the README and the records of an earlier merge, since they speak of another model.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from storage.json_file import read_json, write_json

WEIGHT_ENDINGS = (
    *(".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".ckpt", ".h5"),
    *(".msgpack", ".onnx", ".onnx_data", ".gguf", ".ot", ".tflite"),
)
OTHER_EXPORTS = ("onnx", "openvino")
"""Folders of the same model in formats whose files have many endings."""

RECORDS = ("README.md", "merge.json", "manifest.json", "metrics.json", "pretraining.json", "training_log.jsonl")


def companion_files(folder: Path) -> list[str]:
    """Return the relative names of the files to carry over, in order; linked files and folders count as their own."""
    names = []
    for path in _files_under(folder):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") for part in parts)
        if not path.is_file() or hidden or path.name.endswith(WEIGHT_ENDINGS):
            continue
        if parts[0] not in OTHER_EXPORTS and parts[0] not in RECORDS:
            names.append(Path(*parts).as_posix())
    return sorted(names)


def copy_companions(source: Path, target: Path) -> None:
    """Copy the companions of ``source`` into ``target``; links are followed, permissions are the umask's."""
    for name in companion_files(source):
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, copy)


def record_dtype(folder: Path, dtype: str) -> None:
    """Say in config.json in which precision the weights are; transformers would give them the one it finds there."""
    modules = folder / "modules.json"
    place = folder / (read_json(modules)[0].get("path", "") if modules.is_file() else "")
    file = place / "config.json"
    settings = read_json(file) if file.is_file() else {}
    if said := {key: dtype for key in ("dtype", "torch_dtype") if key in settings}:
        write_json(file, settings | said)


def _files_under(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and in those below it, linked ones included; a link back up is not followed."""
    for place, folders, files in os.walk(folder, followlinks=True):
        here = Path(place)
        above = {here.resolve(), *here.resolve().parents}
        folders[:] = [name for name in folders if (here / name).resolve() not in above]
        yield from (here / name for name in files)
