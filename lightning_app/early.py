"""What can be looked up before a command's libraries are imported: its models, its files and its output folder.

A name that is mistaken, or a model that is out of reach, is told within about two seconds. Nothing here imports torch,
lightning or transformers; nothing is fetched or written, and the commands check everything again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from lightning_app.config import EvaluateConfig, MergeConfig, TrainConfig
from lightning_app.run_folder import check_folder
from merging.methods import find_method
from storage.atomic import refuse_existing

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")


def check_train(config: TrainConfig) -> None:
    """Refuse a run whose output folder is taken, whose data is not there, or whose backbone cannot be had.

    Raises:
        ValueError: as the command would say it, later.

    Example:
        >>> check_train(TrainConfig(backbone="tiny-llm", output="runs/a-name-that-is-free"))
    """
    if config.plan or _is_later_rank():
        return
    check_folder(Path(config.output), config, resume=config.resume, overwrite=config.overwrite)
    _check_files([config.data, config.eval_data], "a file of labelled text")
    _check_models([config.backbone], cache=config.cache, offline=config.offline)


def check_evaluate(config: EvaluateConfig) -> None:
    """Refuse an evaluation whose output folder is taken, or that names a model or a file that is not there.

    Raises:
        ValueError: as the command would say it, later.

    Example:
        >>> check_evaluate(EvaluateConfig(models=("tiny-llm",), output="runs/a-name-that-is-free"))
    """
    if _is_later_rank():
        return
    output = Path(config.output)
    finished = check_folder(output, config, resume=config.resume, overwrite=config.overwrite)
    if finished and (output / "report.json").is_file():
        return
    suites = [name for name in config.suite if Path(name).suffix in (".jsonl", ".csv")]
    _check_files(suites, "a file of labelled text")
    _check_files(config.mteb, "MTEB result files")
    names = [*([config.base] if config.base else []), *config.models]
    _check_models(names, cache=config.cache, offline=config.offline)


def check_merge(config: MergeConfig) -> None:
    """Refuse a merge by an unknown method, whose output folder is taken, or that names a model or recipe that is not there.

    Raises:
        ValueError: as the command would say it, later.

    Example:
        >>> check_merge(MergeConfig(method="linear", inputs=("tiny-llm",), output="runs/a-name-that-is-free"))
    """
    if config.plan or _is_later_rank() or (config.method is None and config.recipe is None):
        return
    if config.method is not None:
        find_method(config.method)
    if not config.overwrite:
        refuse_existing(config.output)
    _check_files([config.recipe], "a recipe")
    if config.recipe is None:
        names = [*([config.base] if config.base else []), *config.inputs]
        # What exists is a folder or a file for the merge to read; most merges never import what looks up names.
        absent = [name for name in names if not Path(name).exists()]
        _check_models(absent, cache=config.cache, offline=config.offline)


def _check_models(names: Iterable[str], *, cache: str | None, offline: bool) -> None:
    names = list(dict.fromkeys(names))
    if not names:
        return
    from models.locate import check_reachable

    for name in names:
        check_reachable(name, cache=cache, offline=offline)


def _check_files(names: Iterable[str | None], expected: str) -> None:
    for name in names:
        if name is not None and not Path(name).exists():
            raise ValueError(f"{name}: expected {expected}, found none; check the path")


def _is_later_rank() -> bool:
    """Whether another process of the same command looks these things up: the first one."""
    return any(re.fullmatch("[1-9][0-9]*", os.environ.get(variable, "")) for variable in RANKS)
