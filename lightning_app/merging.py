"""The merge command: names to folders, then one call of the engine. Imports neither lightning nor a model class."""

import re
from pathlib import Path
from typing import Any

from lightning_app.config import MergeConfig
from merging.engine import merge_checkpoints
from merging.methods import find_method
from storage.json_file import read_json
from storage.lock import folder_lock

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def merge(config: MergeConfig) -> dict[str, Any]:
    """Merge ``config.inputs`` into ``config.output``; returns the summary that ``--json`` prints.

    Raises:
        ValueError: what was asked is not possible; nothing has been written.
    """
    find_method(config.method)
    memory = bytes_of(config.memory)
    base = None if config.base is None else _folder(config.base, config)
    inputs = [_folder(name, config) for name in config.inputs]
    output = Path(config.output)
    if config.overwrite and output.is_dir() and any(output.iterdir()) and not (output / "merge.json").is_file():
        raise ValueError(
            f"--overwrite {output}: expected an earlier merge (merge.json), got another folder; choose a new --output"
        )
    with folder_lock(output):
        report = merge_checkpoints(
            inputs,
            config.output,
            method=config.method,
            base=base,
            weights=config.weights or None,
            t=config.t,
            space=config.space,
            norm=config.norm,
            antipodal=config.antipodal,
            memory=memory,
            overwrite=config.overwrite,
            complete=_complete_tokenizer,
        )
    return {"output": config.output, "method": config.method, **report.get("summary", {})}


def bytes_of(size: str) -> int:
    """``"2GiB"``, ``"500M"`` or a number of bytes.

    >>> bytes_of("2GiB")
    2147483648
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", size.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"--memory: expected a size such as 2GiB or 500MiB, got {size!r}")
    return int(float(match[1]) * UNITS[match[2].upper()])


def _complete_tokenizer(folder: Path) -> None:
    """Where the last token is the embedding, load and save the model's tokenizer, which adds the end token it asks for.

    transformers 5 ignores ``add_eos_token``; only such a model costs the import of a model class.
    """
    pooling, settings = folder / "1_Pooling" / "config.json", folder / "tokenizer_config.json"
    if not pooling.is_file() or not settings.is_file() or not read_json(settings).get("add_eos_token"):
        return
    told = read_json(pooling)
    if told.get("pooling_mode_lasttoken") or told.get("pooling_mode") == "lasttoken":
        from models.end_token import complete_tokenizer

        complete_tokenizer(folder)


def _folder(name: str, config: MergeConfig) -> Path:
    """A folder as it is; the name of a backbone or a hub id through the models package, which is imported only then."""
    if Path(name).is_dir():
        return Path(name)
    from models.locate import base_folder

    return base_folder(name, cache=config.cache, offline=config.offline)
