"""Code of a repository's own: named and refused, unless it is asked for at one fixed commit.

It is needed only where neither transformers nor this package has a class for the model; whatever else a repository's
files name (``auto_map`` beside a known model type) is never run.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from models.locate import hub_origin
from models.native_config import is_foreign
from models.nomic_type import is_nomic_moe
from models.origin import transformer_folder
from storage.json_file import read_json

COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class RemoteCode:
    """One class that only code beside the weights has."""

    name: str
    """Class, as ``NewModel``."""
    file: str
    """File of it, as ``modeling.py``."""
    repository: str | None
    """Hub id of another repository that holds the file; None for the model's own folder."""


def find_remote_code(folder: Path) -> RemoteCode | None:
    """The first class that the model cannot be loaded without and that only its own code has, or None."""
    if (folder / "modules.json").is_file():
        for module in read_json(folder / "modules.json"):
            if not str(module.get("type", "")).startswith("sentence_transformers."):
                return _parse(str(module["type"]))
    file = transformer_folder(folder) / "config.json"
    settings = read_json(file) if file.is_file() else {}
    codes, kind = settings.get("auto_map"), settings.get("model_type")
    if not isinstance(codes, dict) or not codes or kind in CONFIG_MAPPING or is_foreign(settings):
        return None
    if is_nomic_moe(settings):
        return None
    code = codes.get("AutoModel") or next(iter(codes.values()))
    return _parse(str(code[0] if isinstance(code, list) else code))


def _parse(code: str) -> RemoteCode:
    repository, _, rest = code.rpartition("--")
    module, _, name = rest.rpartition(".")
    return RemoteCode(name=name, file=f"{module.replace('.', '/')}.py", repository=repository or None)


def allow_remote_code(folder: Path, *, trusted: bool, revision: str | None = None) -> bool:
    """Whether transformers has to be told to run the folder's own code; refused unless the user said so.

    What is going to be run is printed on stderr, with its repository and commit.

    Args:
        folder: a local folder or a snapshot in a hub cache.
        trusted: whether the user asked for it (--trust-remote-code).
        revision: the commit that the user, or the backbone's row, fixes; a snapshot given by its path fixes its own.

    Raises:
        ValueError: code that is needed and not asked for, that lies in another repository, is absent, or belongs to
            a snapshot of the hub that no commit fixes; names the class, the file and the repository.
    """
    code = find_remote_code(folder)
    if code is None:
        return False
    origin = hub_origin(folder)
    own = str(folder) if origin is None else origin[0]
    what = f"class {code.name} of {code.file} in {code.repository or own}"
    if not trusted:
        raise ValueError(
            f"model {own}: expected a model that needs no code of its own, got {what}; read that file and, if you "
            "trust it, give --trust-remote-code (trust_remote_code=True)"
        )
    if code.repository is not None and code.repository != own:
        raise ValueError(
            f"model {own}: expected its code beside its weights, got {what}, which no commit of this model fixes; "
            "copy both into one folder, name the file in auto_map of config.json and give that folder"
        )
    if not (folder / code.file).is_file():
        raise ValueError(f"model {own}: expected {code.file} beside its weights, found no such file; fetch it too")
    if origin is not None and not (revision is not None and COMMIT.fullmatch(revision) and revision == origin[1]):
        raise ValueError(
            f"model {own}: expected a commit of 40 hexadecimal digits with --trust-remote-code, got {revision}; "
            f"give {own}@{origin[1]} after reading {code.file} there"
        )
    print(f"remote code: {what}, {'local folder' if origin is None else f'revision {origin[1]}'}", file=sys.stderr)
    return True
