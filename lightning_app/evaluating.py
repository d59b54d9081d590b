"""The evaluate command: some models, the same suites, one report."""

import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from torch import Tensor

from data.labelled_text import check_trainable, read_labelled_text, suite_of
from data.lengths import LONGEST, SHORTEST, length_suite
from data.suites import SUITES, Suite, broad_suite, paper_suite, separated
from evaluation.baselines import BASELINES
from evaluation.mteb import benchmark_scores, read_mteb
from evaluation.mteb_writing import task_name
from evaluation.suite_report import Effort
from lightning_app.config import EvaluateConfig
from lightning_app.measurement import Measured, Measures, failed_row, measure
from lightning_app.presentation import announce, show_rows
from lightning_app.reference_rows import baseline_rows, benchmark_name, benchmark_rows, published_rows
from lightning_app.reporting import write_all
from lightning_app.run_folder import check_folder, environment
from models.adapter import find_adapter
from models.backbones import lookup_backbone
from models.embedder import base_folder, check_finite_weights, check_lengths, count_tokens, encode, load_embedder
from storage.atomic import building_folder
from storage.json_file import read_json, write_json
from storage.lock import folder_lock

REPORTED = ("large", "held-out", "matched", "broad")

FAILURES = (ValueError, OSError, RuntimeError, MemoryError)
"""What a model that is found but broken ends with; its row says why, and the others are finished."""
BROKEN_MODEL = (ImportError, SafetensorError, KeyError, TypeError, AttributeError, IndexError, AssertionError)
"""What libraries raise for files that they cannot follow. Of our own code these are errors, so only they are let pass there."""


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Measure every model and write the report into ``config.output``.

    Returns:
        ``{"output": folder, "rows": [...], "failed": [name, ...]}``: the rows of report.json, and the models that could not be
        measured (their rows say why).

    Raises:
        ValueError: a model that is not found, an unknown suite, no model that could be measured, a base that could not, a
            name that two rows would bear; nothing is written then.
    """
    began, folder = time.monotonic(), Path(config.output)
    names = list(dict.fromkeys(([config.base] if config.base else []) + list(config.models)))
    measures, _ = _measures(config), _device(config)
    scores = benchmark_scores([result for path in dict.fromkeys(config.mteb) for result in read_mteb(path)])
    published = published_rows() if config.published else []
    beside = [*(BASELINES if config.baselines else ()), *map(benchmark_name, scores)]
    _check_names(names, [*beside, *(row["name"] for row in published)])
    with folder_lock(folder):
        finished = check_folder(folder, config.to_dict(), resume=config.resume, overwrite=config.overwrite)
        if finished and (folder / "report.json").is_file():
            announce(f"finished before: {folder / 'report.html'}")
            rows = read_json(folder / "report.json")["rows"]
            _say_failed(rows)
            return _result(folder, rows)
        _check_found(names, config)
        measured = _measure_all(config, names, measures)
        if config.baselines:
            announce("measuring the baselines")
            measured += baseline_rows(measures)
        rows = benchmark_rows([each.row for each in measured], scores) + published
        context = {
            "models": len(names),
            "base": config.base,
            "seed": config.seed,
            **({} if config.separator is None else {"separator": repr(config.separator)}),
            "seconds": round(time.monotonic() - began, 1),
        }
        _write(folder, config, measured, rows, measures, context)
    show_rows(rows, title=str(folder / "report.html"))
    return _result(folder, rows)


def _write(
    folder: Path,
    config: EvaluateConfig,
    measured: Sequence[Measured],
    rows: Sequence[Mapping[str, Any]],
    measures: Measures,
    context: Mapping[str, Any],
) -> None:
    """The whole folder or nothing of it; `check_folder` has allowed to replace what stands there."""
    with building_folder(folder, overwrite=True) as building:
        write_json(building / "config.json", config.to_dict())
        write_json(building / "environment.json", environment())
        revision = f"seed-{config.seed}"
        write_all(building, measured, rows, measures, title="embarc: evaluation", context=context, revision=revision)


def _result(folder: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"output": str(folder), "rows": rows, "failed": [row["name"] for row in rows if "error" in row]}


def _check_names(names: Sequence[str], taken: Sequence[str]) -> None:
    """Rows are told apart by their names."""
    if both := [name for name in names if name in taken]:
        raise ValueError(
            f"{both[0]}: expected a name that no other row of the report has, got that of a reference row; "
            f"give the folder as ./{both[0]}, or leave those rows out (--no-baselines, --no-published)"
        )


def _check_found(names: Sequence[str], config: EvaluateConfig) -> None:
    """Every name is looked up before the first is measured, so that a mistake in the last one costs nothing."""
    for name in names:
        row = lookup_backbone(name)
        if row is None or not row.from_scratch:
            base_folder(name, cache=config.cache, offline=config.offline)


def _measures(config: EvaluateConfig) -> Measures:
    """The suites asked for, with the separator asked for."""
    if config.permutations < 2:
        raise ValueError(f"--permutations: expected 2 or more, got {config.permutations}; 1000 is a good number")
    if config.draws < 0 or config.draws == 1:
        raise ValueError(f"--draws: expected 0 (none), or 2 and more, got {config.draws}; 99 is a good number")
    if not 0 <= config.seed < 2**32:
        raise ValueError(f"--seed: expected 0 to {2**32 - 1}, got {config.seed}; 0 is the default")
    if config.batch_size < 1:
        raise ValueError(f"--batch-size: expected 1 or more texts, got {config.batch_size}; 32 is the default")
    if wrong := [terms for terms in config.lengths if not SHORTEST <= terms <= LONGEST]:
        raise ValueError(f"--lengths: expected {SHORTEST} to {LONGEST} terms a text, got {wrong[0]}; 50 is the paper's")

    def written(suite: Suite) -> Suite:
        return suite if config.separator is None else separated(suite, config.separator)

    return Measures(
        paper=written(paper_suite()),
        broad=written(broad_suite()),
        reported={name: suite if own else written(suite) for name, (suite, own) in _suites(config).items()},
        lengths=[written(length_suite(terms)) for terms in sorted(set(config.lengths))],
        effort=Effort(permutations=config.permutations, draws=config.draws),
        seed=config.seed,
    )


def _suites(config: EvaluateConfig) -> Mapping[str, tuple[Suite, bool]]:
    """The suites asked for, built in or (True) from a file; ``paper`` is always measured."""
    found: dict[str, tuple[Suite, bool]] = {}
    for name in config.suite:
        if name == "selection":
            raise ValueError(
                "--suite selection: this suite chooses epochs and merges, so it is never reported; take large"
            )
        if name == "paper":
            continue
        if name in REPORTED:
            found[name] = (SUITES[name](), False)
        elif Path(name).suffix in (".jsonl", ".csv"):
            stem = Path(name).stem
            _check_suite_name(name, stem, [*SUITES, *found])
            data = read_labelled_text(name)
            check_trainable(data)
            found[stem] = (suite_of(data, stem), True)
        else:
            raise ValueError(f"--suite: expected paper, {', '.join(REPORTED)}, or a .jsonl or .csv file, got {name!r}")
    return found


def _check_suite_name(file: str, stem: str, taken: Sequence[str]) -> None:
    """In the report a suite is a key, with ``_reason`` after it where it is undefined, and in MTEB's shape a task."""
    if alike := [other for other in taken if task_name(other) == task_name(stem)]:
        raise ValueError(
            f"--suite {file}: expected a file name of its own, got {stem!r} for a second suite beside {alike[0]!r}; "
            "rename the file"
        )
    if stem.endswith("_reason"):
        raise ValueError(
            f"--suite {file}: expected a file name without the ending '_reason', got {stem!r}; rename the file"
        )


def _measure_all(config: EvaluateConfig, names: list[str], measures: Measures) -> list[Measured]:
    """Every model's row; one that fails has a row that says why, unless it is the base or the only one."""
    measured: list[Measured] = []
    for name in names:
        announce(f"measuring {name}")
        base = measured[0] if config.base is not None and measured else None
        try:
            measured.append(_measure_one(config, name, measures, base))
        except FAILURES as error:
            reason = " ".join(str(error).split()) or f"{type(error).__name__} without a message"
            if name == config.base or len(names) == 1:
                raise ValueError(reason if name in reason else f"{name}: {reason}") from error
            row = failed_row(name, "encoder", reason.removeprefix(f"{name}: "))
            _say_failed([row])
            measured.append(Measured(row=row, embeddings={}))
    if all("error" in each.row for each in measured):
        raise ValueError("; ".join(f"{each.row['name']}: {each.row['error']}" for each in measured))
    return measured


def _say_failed(rows: Sequence[Mapping[str, Any]]) -> None:
    """One line a model on stderr, however long."""
    for row in rows:
        if "error" in row:
            print(f"failed: {row['name']}: {row['error']}", file=sys.stderr)


@contextmanager
def _blamed_on(name: str) -> Iterator[None]:
    """Errors inside are the model's: whatever a library raises becomes a ValueError that says so."""
    try:
        yield
    except BROKEN_MODEL as error:
        raise ValueError(
            f"{name}: expected a model that loads and embeds, got {type(error).__name__}: {error}; compare its files with the hub's"
        ) from error


def _measure_one(config: EvaluateConfig, name: str, measures: Measures, base: Measured | None) -> Measured:
    with _blamed_on(name):
        embedder = load_embedder(name, device=_device(config), cache=config.cache, offline=config.offline)
    check_finite_weights(embedder, source=name)
    prompt = _prompt(embedder, config)
    for suite in measures.suites.values():
        check_lengths(embedder, suite.texts, source=f"{name}, suite {suite.name}", prompt=prompt)

    def embed(texts: Sequence[str]) -> Float[Tensor, "n d"]:
        with _blamed_on(name):
            return encode(embedder, texts, batch_size=config.batch_size, prompt=prompt)

    return measure(
        embed,
        name=name,
        family=_family(name, embedder, config),
        prompt=prompt or None,
        measures=measures,
        base=base,
        count_tokens=lambda texts: count_tokens(embedder, texts, prompt=prompt),
    )


def _device(config: EvaluateConfig) -> str:
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if config.device != "cpu" and not (re.fullmatch("cuda(:[0-9]+)?", config.device) and torch.cuda.is_available()):
        here = "auto, cpu or cuda" if torch.cuda.is_available() else "auto or cpu, as no GPU is here"
        raise ValueError(f"--device: expected {here}, got {config.device!r}; leave it out")
    return config.device


def _prompt(embedder: SentenceTransformer, config: EvaluateConfig) -> str | None:
    """The text put before every text; None is the model's own default."""
    if config.prompt is None:
        name = embedder.default_prompt_name
        return None if name is None else embedder.prompts[name]
    if config.prompt == "none":
        return ""
    if config.prompt not in embedder.prompts:
        known = ", ".join(["none", *embedder.prompts])
        raise ValueError(f"--prompt: expected one of the model's prompts ({known}), got {config.prompt!r}")
    return embedder.prompts[config.prompt]


def _family(name: str, embedder: SentenceTransformer, config: EvaluateConfig) -> str:
    """The row's kind: the base, an adapter, a merge by its merge.json, else an encoder."""
    if name == config.base:
        return "base"
    if find_adapter(embedder) is not None:
        return "lora"
    merge = Path(name) / "merge.json"
    if merge.is_file():
        return "soup" if read_json(merge)["method"] == "linear" else "slerp"
    return "encoder"
