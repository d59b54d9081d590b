"""The evaluate command: some models, the same suites, one report."""

import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from torch import Tensor

from evaluation.baselines import BASELINES
from evaluation.mteb import benchmark_scores, read_mteb
from lightning_app.config import EvaluateConfig
from lightning_app.device_map import parse_device_map
from lightning_app.evaluation_suites import measures_of
from lightning_app.loading import loading_options
from lightning_app.measurement import Measured, Measures, failed_row, measure
from lightning_app.presentation import announce, show_rows
from lightning_app.reference_rows import baseline_rows, benchmark_name, benchmark_rows, published_rows
from lightning_app.reporting import write_all
from lightning_app.run_folder import check_folder, environment
from lightning_app.saved_embeddings import (
    check_free,
    check_kept,
    describe,
    find_embeddings_file,
    saving_embeddings,
)
from models.adapter import find_adapter
from models.backbones import lookup_backbone
from models.embedder import base_folder, check_finite_weights, check_lengths, count_tokens, encode, load_embedder
from models.locate import hub_origin
from storage.atomic import building_folder
from storage.json_file import read_json, write_json
from storage.lock import folder_lock

SHOWN = ("dtype", "device_map", "truncate_dim")
"""Settings that the report tells of, where they are given."""
FAILURES = (ValueError, OSError, RuntimeError, MemoryError)
"""What a model that is found but broken ends with; its row says why, and the others are finished."""
BROKEN_MODEL = (
    *(ImportError, SafetensorError, StrictDataclassError),
    *(KeyError, TypeError, AttributeError, IndexError, AssertionError),
)
"""What libraries raise for files that they cannot follow. Of our own code these are errors, so only they are let pass there."""


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Measure every model and write the report into ``config.output``.

    Returns:
        ``{"output": folder, "embeddings": file or None, "rows": [...], "failed": [name, ...]}``: the rows of report.json,
        and the models that could not be measured (their rows say why).

    Raises:
        ValueError: a model that is not found, an unknown suite, no model that could be measured, a base that could not, a
            name that two rows would bear, a place where embeddings cannot be saved; nothing is written then.
    """
    began, folder = time.monotonic(), Path(config.output)
    names = list(dict.fromkeys(([config.base] if config.base else []) + list(config.models)))
    measures = measures_of(config)
    _check_loading(config)
    embeddings = find_embeddings_file(config, names)
    scores = benchmark_scores([result for path in dict.fromkeys(config.mteb) for result in read_mteb(path)])
    published = published_rows() if config.published else []
    beside = [*(BASELINES if config.baselines else ()), *map(benchmark_name, scores)]
    _check_names(names, [*beside, *(row["name"] for row in published)])
    with folder_lock(folder):
        finished = check_folder(folder, config, resume=config.resume, overwrite=config.overwrite)
        if finished and (folder / "report.json").is_file():
            if embeddings is not None:
                check_kept(embeddings)
            announce(f"finished before: {folder / 'report.html'}")
            rows = read_json(folder / "report.json")["rows"]
            _say_failed(rows)
            return _result(config, rows)
        if embeddings is not None:
            check_free(embeddings, overwrite=config.overwrite)
        revisions = _find_all(names, config)
        models = _measure_all(config, names, measures)
        measured = list(models)
        if config.baselines:
            announce("measuring the baselines")
            measured += baseline_rows(measures)
        rows = benchmark_rows([each.row for each in measured], scores) + published
        context = {
            "models": len(names),
            "base": config.base,
            "seed": config.seed,
            **({} if config.separator is None else {"separator": repr(config.separator)}),
            **{key: value for key in SHOWN if (value := getattr(config, key)) is not None},
            "seconds": round(time.monotonic() - began, 1),
        }
        with building_folder(folder, overwrite=True) as building, ExitStack() as saving:
            # `check_folder` has allowed to replace what stands there: the whole folder or nothing of it.
            _write(building, config, measured, rows, measures, context)
            if embeddings is not None:
                about = describe(models, measures.suites, revisions=revisions, truncate_dim=config.truncate_dim)
                saving.enter_context(saving_embeddings(embeddings, models, about, building=building))
    show_rows(rows, title=str(folder / "report.html"))
    if embeddings is not None:
        announce(f"embeddings: {config.embeddings}")
    return _result(config, rows)


def _write(
    folder: Path,
    config: EvaluateConfig,
    measured: Sequence[Measured],
    rows: Sequence[Mapping[str, Any]],
    measures: Measures,
    context: Mapping[str, Any],
) -> None:
    """Everything of the report, into its folder."""
    write_json(folder / "config.json", config.to_dict())
    write_json(folder / "environment.json", environment())
    revision = f"seed-{config.seed}"
    write_all(folder, measured, rows, measures, title="embarc: evaluation", context=context, revision=revision)


def _result(config: EvaluateConfig, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    failed = [row["name"] for row in rows if "error" in row]
    return {"output": str(Path(config.output)), "embeddings": config.embeddings, "rows": rows, "failed": failed}


def _check_names(names: Sequence[str], taken: Sequence[str]) -> None:
    """Rows are told apart by their names."""
    if both := [name for name in names if name in taken]:
        raise ValueError(
            f"{both[0]}: expected a name that no other row of the report has, got that of a reference row; "
            f"give the folder as ./{both[0]}, or leave those rows out (--no-baselines, --no-published)"
        )


def _check_loading(config: EvaluateConfig) -> None:
    """What is asked of every model is possible here, before the first is looked up."""
    spread = parse_device_map(config.device_map)
    on_gpu = [place for place in spread.values() if place not in ("cpu", "disk")] if isinstance(spread, dict) else []
    if on_gpu and not torch.cuda.is_available():
        raise ValueError(f"--device-map: expected cpu or disk, as no GPU is here, got {on_gpu[0]!r}; correct it")
    if config.device_map is not None and config.device != "auto":
        raise ValueError(
            f"--device {config.device} and --device-map {config.device_map}: expected one of them, got both; drop one"
        )
    _device(config)
    if config.truncate_dim is not None and config.truncate_dim < 1:
        raise ValueError(f"--truncate-dim: expected 1 or more components, got {config.truncate_dim}; change it")


def _find_all(names: Sequence[str], config: EvaluateConfig) -> dict[str, tuple[str, str]]:
    """Look up every name before the first is measured, so that a mistake in the last one costs nothing.

    Returns:
        {name: (hub id, commit)} of the models that are snapshots of the hub.
    """
    found: dict[str, tuple[str, str]] = {}
    for name in names:
        row = lookup_backbone(name)
        if row is None or not row.from_scratch:
            folder = base_folder(
                name,
                cache=config.cache,
                offline=config.offline,
                pickled_weights=config.pickled_weights,
                code=config.trust_remote_code,
                verify=False,  # a model that is there and damaged has a row that says so
            )
            if (origin := hub_origin(folder)) is not None:
                found[name] = origin
    return found


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
        embedder = load_embedder(
            name,
            device=_device(config),
            **loading_options(config) | {"device_map": parse_device_map(config.device_map)},
        )
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
        note=None if config.truncate_dim is None else f"embeddings cut to their first {config.truncate_dim} components",
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
