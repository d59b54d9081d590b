"""The folder of a run at its start: made anew, or gone on with, with what was allowed to change."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_app.changes import Change, without_effect
from lightning_app.config import TrainConfig
from lightning_app.fingerprints import INPUTS, fingerprint_data
from lightning_app.presentation import announce
from lightning_app.run_folder import adopt_changes, environment, list_changes, make_folder, other_packages

LENGTHS = ("epochs", "steps_per_epoch", "patience")
"""Settings of a stage after which a finished one may be gone on with from its last state."""


def start_run(folder: Path, config: TrainConfig, backbone: Mapping[str, Any], *, going_on: bool) -> None:
    """Write the settings and fingerprints of a run into its folder.

    A resumed run says on stderr what changed. Where that makes stages longer, those that were finished are gone on with from
    their last state, and what came after them is made again.

    Args:
        folder: Of the run.
        config: Settings of now; of a resumed run allowed by `check_folder`.
        backbone: From `fingerprint_backbone`.
        going_on: Whether it is resumed.
    """
    inputs = {**fingerprint_data(config), **backbone}
    if not going_on:
        make_folder(folder, config.to_dict(), {"environment.json": environment(), INPUTS: {**inputs, "changes": []}})
        return
    changes = list_changes(folder, config, inputs)
    for change in changes:
        announce(f"--allow-changes: {change}")
    for name in without_effect(changes, config.allow_changes):
        announce(f"--allow-changes {name}: nothing of that name has changed")
    for package in other_packages(folder):
        announce(f"note: {package}; what is still to be computed may differ in its last digits")
    first = first_longer(changes)
    if first is not None:
        _reopen(folder, first)
    # last, so that a run that is killed before finds the same changes again
    adopt_changes(folder, config, inputs)


def first_longer(changes: Sequence[Change]) -> int | None:
    """The first stage, counted from 0, that these changes make longer; None where they make none so.

    >>> first_longer([Change("devices", 1, 2), Change("stages.1.epochs", 3, 6)])
    1
    """
    found = []
    for change in changes:
        parts = change.name.split(".")
        if change.name == "max_steps" and (change.now == -1 or -1 < change.before < change.now):
            found.append(0)
        elif parts[0] == "stages" and parts[-1] in LENGTHS and None not in (change.before, change.now):
            found += [int(parts[1])] if change.before < change.now else []
    return min(found, default=None)


def _reopen(folder: Path, first: int) -> None:
    """Take from stage ``first`` that it is finished, and take away what was made after it.

    States first and the earliest stage last: whatever is cut short, no state is left that belongs to other weights.
    """
    stages = [path for path in (folder / "stages").glob("*") if _number(path) > first]
    finished = [path for path in stages if (path / "manifest.json").is_file()]
    if finished:
        names = ", ".join(sorted(path.name for path in finished))
        announce(f"stages {names}: finished before, gone on with from stage {first + 1}")
    states = [path for path in (folder / "resume").glob("*") if _number(path) > first + 1]
    after = [*states, *(folder / "merged").glob("*"), folder / "cross-fit"]
    for path in (*after, *sorted(stages, key=_number, reverse=True)):
        if path.is_dir():
            shutil.rmtree(path)


def _number(path: Path) -> int:
    """The number that a stage's folder begins with: 1 for the first one, 0 for the base; one without comes after all."""
    number = path.name.partition("-")[0]
    return int(number) if number.isdigit() else 10**6
