"""The evaluate command: some models, the same suites, one report."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer

from data.labelled_text import check_trainable, read_labelled_text, suite_of
from data.lengths import LONGEST, SHORTEST, length_suite
from data.suites import SUITES, Suite, broad_suite, paper_suite, separated
from evaluation.mteb import read_mteb
from evaluation.suite_report import Effort
from lightning_app.config import EvaluateConfig
from lightning_app.measurement import Measured, Measures, failed_row, measure
from lightning_app.presentation import announce, show_rows
from lightning_app.reference_rows import baseline_rows, benchmark_rows, published_rows
from lightning_app.reporting import write_all
from lightning_app.run_folder import check_folder, environment, make_folder
from models.adapter import find_adapter
from models.backbones import lookup_backbone
from models.embedder import base_folder, check_finite_weights, check_lengths, count_tokens, encode, load_embedder
from storage.json_file import read_json, write_json
from storage.lock import folder_lock

REPORTED = ("large", "held-out", "matched", "broad")

LOADING_FAILURES = (
    *(ValueError, OSError, RuntimeError, MemoryError, ImportError, SafetensorError),
    *(KeyError, TypeError, AttributeError, IndexError),  # what transformers raises for a configuration it cannot follow
)
"""What a model that is found but broken ends with; its row says why, and the others are finished."""


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Measure every model and write the report into ``config.output``.

    Returns:
        ``{"output": folder, "rows": [...], "failed": [name, ...]}``: the rows of report.json, and the models that could not be
        measured (their rows say why).

    Raises:
        ValueError: a model that is not found, an unknown suite, no model that could be measured, a base that could not; nothing
            is written then.
    """
    began, folder = time.monotonic(), Path(config.output)
    names = list(dict.fromkeys(([config.base] if config.base else []) + list(config.models)))
    measures = _measures(config)
    results = [result for path in config.mteb for result in read_mteb(path)]
    with folder_lock(folder):
        if check_folder(folder, config.to_dict(), resume=config.resume, overwrite=config.overwrite):
            rows = read_json(folder / "report.json")["rows"]
            announce(f"finished before: {folder / 'report.html'}")
            return _result(folder, rows)
        # every name is looked up first, so that a mistake in the last one costs no measurements
        for name in names:
            row = lookup_backbone(name)
            if row is None or not row.from_scratch:
                base_folder(name, cache=config.cache, offline=config.offline)
        measured = _measure_all(config, names, measures)
        if config.baselines:
            announce("measuring the baselines")
            measured += baseline_rows(measures)
        make_folder(folder, config.to_dict())
        write_json(folder / "environment.json", environment())
        rows = benchmark_rows([each.row for each in measured], results)
        rows += published_rows() if config.published else []
        context = {
            "models": names,
            "base": config.base,
            "seed": config.seed,
            **({} if config.separator is None else {"separator": repr(config.separator)}),
            "seconds": round(time.monotonic() - began, 1),
        }
        write_all(
            folder,
            measured,
            rows,
            measures,
            title="embarc: evaluation",
            context=context,
            revision=f"seed-{config.seed}",
        )
    show_rows(rows, title=str(folder / "report.html"))
    return _result(folder, rows)


def _result(folder: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"output": str(folder), "rows": rows, "failed": [row["name"] for row in rows if "error" in row]}


def _measures(config: EvaluateConfig) -> Measures:
    """The suites asked for, with the separator asked for."""
    if config.permutations < 2:
        raise ValueError(f"--permutations: expected 2 or more, got {config.permutations}; 1000 is a good number")
    if config.draws < 0:
        raise ValueError(f"--draws: expected 0 or more, got {config.draws}; 99 is a good number")
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
            if stem in SUITES or stem in found:
                raise ValueError(
                    f"--suite {name}: expected a file name of its own, got {stem!r} for a second suite; rename the file"
                )
            data = read_labelled_text(name)
            check_trainable(data)
            found[stem] = (suite_of(data, stem), True)
        else:
            raise ValueError(f"--suite: expected paper, {', '.join(REPORTED)}, or a .jsonl or .csv file, got {name!r}")
    return found


def _measure_all(config: EvaluateConfig, names: list[str], measures: Measures) -> list[Measured]:
    """Every model's row; one that fails has a row that says why, unless it is the base or the only one."""
    measured: list[Measured] = []
    for name in names:
        announce(f"measuring {name}")
        base = measured[0] if config.base is not None and measured else None
        try:
            measured.append(_measure_one(config, name, measures, base))
        except LOADING_FAILURES as error:
            reason = " ".join(str(error).split()) or "no message"
            if not isinstance(error, (ValueError, OSError, RuntimeError)):
                reason = f"expected a model that loads, got {type(error).__name__}: {reason}; compare its files with the hub's"
            if name == config.base or len(names) == 1:
                raise ValueError(reason if name in reason else f"{name}: {reason}") from error
            announce(f"failed: {name}: {reason}")
            measured.append(Measured(row=failed_row(name, "encoder", reason), embeddings={}))
    if all("error" in each.row for each in measured):
        raise ValueError("; ".join(f"{each.row['name']}: {each.row['error']}" for each in measured))
    return measured


def _measure_one(config: EvaluateConfig, name: str, measures: Measures, base: Measured | None) -> Measured:
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    embedder = load_embedder(name, device=device, cache=config.cache, offline=config.offline)
    check_finite_weights(embedder, source=name)
    prompt = _prompt(embedder, config)
    for suite in measures.suites.values():
        check_lengths(embedder, suite.texts, source=f"{name}, suite {suite.name}", prompt=prompt)
    return measure(
        lambda texts: encode(embedder, texts, batch_size=config.batch_size, prompt=prompt),
        name=name,
        family=_family(name, embedder, config),
        prompt=prompt or None,
        measures=measures,
        base=base,
        count_tokens=lambda texts: count_tokens(embedder, texts, prompt=prompt),
    )


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
