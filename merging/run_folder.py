"""Our own run folders as inputs: which model a path into ``runs/NAME`` means.

Layout: ``stages/0-base`` (metrics and manifest; weights only for a model that has no folder of its own),
``stages/1-NAME``, ... (an adapter or a whole model) and ``merged/METHOD`` (whole models).
"""

from __future__ import annotations

from pathlib import Path

from storage.json_file import read_json
from storage.manifest import MANIFEST, fingerprint


def folder_of_weights(folder: Path) -> Path:
    """Return the folder whose weights ``folder`` stands for: itself, or the base for a run's stage without weights.

    Raises:
        ValueError: it is a whole run or its folder of stages (its stages are named), or a base stage whose base
            cannot be found or has changed since.
    """
    run = folder.parent if folder.name == "stages" else folder
    if (run / "stages").is_dir() and not (folder / "modules.json").is_file():
        choices = [*_numbered(run / "stages"), *sorted(path for path in run.glob("merged/*") if path.is_dir())]
        named = ", ".join(str(path) for path in choices) or "none yet"
        raise ValueError(f"{folder}: expected one model, got the folder of a run; give one of its models: {named}")
    stage = _manifest(folder).get("stage")
    if stage is None or any(folder.glob("*.safetensors")):
        return folder
    return _base_of_stage(folder)


def _base_of_stage(folder: Path) -> Path:
    """Return the base that the other stages of the run were trained on."""
    backbone = _manifest(folder).get("backbone")
    for stage in _numbered(folder.parent):
        recorded = _manifest(stage).get("base")
        if not isinstance(recorded, dict):
            continue
        base = Path(str(recorded.get("path")))
        if not base.is_dir():
            raise ValueError(
                f"{folder}: expected the run's base at {base}, got nothing there; give the folder of {backbone} itself"
            )
        if fingerprint(base) != recorded.get("fingerprint"):
            raise ValueError(
                f"{folder}: expected the base that the run was trained on, got other weights in {base} now; "
                f"give the folder of {backbone} as it was"
            )
        return base
    raise ValueError(
        f"{folder}: expected weights, got a stage without any and no other stage that names its base; "
        f"give the folder of {backbone} itself"
    )


def _manifest(folder: Path) -> dict[str, object]:
    file = folder / MANIFEST
    content = read_json(file) if file.is_file() else {}
    return content if isinstance(content, dict) else {}


def _numbered(stages: Path) -> list[Path]:
    """Return the folders of the stages in the order of their numbers: 2-b before 10-a."""
    folders = [path for path in stages.iterdir() if path.is_dir() and not path.name.startswith(".")]

    def order(path: Path) -> tuple[int, str]:
        number = path.name.partition("-")[0]
        return (int(number) if number.isdecimal() else len(folders), path.name)

    return sorted(folders, key=order)
