"""The evaluate command: some models, the same suites, one report."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from data.labelled_text import check_trainable, read_labelled_text, suite_of
from data.suites import SUITES, Suite, broad_suite, paper_suite
from evaluation.report import write_report
from lightning_app.config import EvaluateConfig
from lightning_app.measurement import Measured, draw_projection, measure
from lightning_app.presentation import announce, show_rows
from lightning_app.run_folder import check_folder, environment, make_folder
from models.adapter import find_adapter
from models.backbones import lookup_backbone
from models.embedder import base_folder, check_finite_weights, check_lengths, encode, load_embedder
from storage.json_file import read_json, write_json
from storage.lock import folder_lock

REPORTED = ("large", "held-out", "broad")


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Measure every model and write the report into ``config.output``.

    Returns:
        ``{"output": folder, "rows": [...]}``, the rows of report.json.

    Raises:
        ValueError: a model that cannot be loaded, a text that a model would truncate, an unknown suite; nothing is written then.
    """
    began, folder = time.monotonic(), Path(config.output)
    names = list(dict.fromkeys(([config.base] if config.base else []) + list(config.models)))
    suites = _suites(config)
    with folder_lock(folder):
        if check_folder(folder, config.to_dict(), resume=config.resume, overwrite=config.overwrite):
            rows = read_json(folder / "report.json")["rows"]
            announce(f"finished before: {folder / 'report.html'}")
            return {"output": str(folder), "rows": rows}
        # every name is looked up first, so that a mistake in the last one costs no measurements
        for name in names:
            row = lookup_backbone(name)
            if row is None or not row.from_scratch:
                base_folder(name, cache=config.cache, offline=config.offline)
        measured = _measure_all(config, names, suites)
        make_folder(folder, config.to_dict())
        write_json(folder / "environment.json", environment())
        rows = [each.row for each in measured]
        (folder / "projections").mkdir()
        pictures = {row["name"]: folder / "projections" / f"{i}.png" for i, row in enumerate(rows)}
        for each in measured:
            draw_projection(each, pictures[each.row["name"]], seed=config.seed)
        context = {
            "models": names,
            "base": config.base,
            "seed": config.seed,
            "seconds": round(time.monotonic() - began, 1),
        }
        write_report(folder, rows, title="embarc: evaluation", context=context, projections=pictures)
    show_rows(rows, title=str(folder / "report.html"))
    return {"output": str(folder), "rows": rows}


def _suites(config: EvaluateConfig) -> Mapping[str, Suite]:
    """The suites asked for, built in or from a file; ``paper`` is always measured."""
    found: dict[str, Suite] = {}
    for name in config.suite:
        if name == "selection":
            raise ValueError(
                "--suite selection: this suite chooses epochs and merges, so it is never reported; take large"
            )
        if name == "paper":
            continue
        if name in REPORTED:
            found[name] = SUITES[name]()
        elif Path(name).suffix in (".jsonl", ".csv"):
            stem = Path(name).stem
            if stem in SUITES or stem in found:
                raise ValueError(
                    f"--suite {name}: expected a file name of its own, got {stem!r} for a second suite; rename the file"
                )
            data = read_labelled_text(name)
            check_trainable(data)
            found[stem] = suite_of(data, stem)
        else:
            raise ValueError(f"--suite: expected paper, {', '.join(REPORTED)}, or a .jsonl or .csv file, got {name!r}")
    return found


def _load(name: str, config: EvaluateConfig, suites: Mapping[str, Suite]) -> SentenceTransformer:
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    embedder = load_embedder(name, device=device, cache=config.cache, offline=config.offline)
    check_finite_weights(embedder, source=name)
    prompt = _prompt(embedder, config)
    for suite in (paper_suite(), broad_suite(), *suites.values()):
        check_lengths(embedder, suite.texts, source=f"{name}, suite {suite.name}", prompt=prompt)
    return embedder


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


def _measure_all(config: EvaluateConfig, names: list[str], suites: Mapping[str, Suite]) -> list[Measured]:
    measured: list[Measured] = []
    for name in names:
        announce(f"measuring {name}")
        embedder = _load(name, config, suites)
        prompt = _prompt(embedder, config)
        measured.append(
            measure(
                lambda texts, embedder=embedder, prompt=prompt: encode(  # type: ignore[misc]
                    embedder, texts, batch_size=config.batch_size, prompt=prompt
                ),
                name=name,
                family=_family(name, embedder, config),
                prompt=prompt or None,
                suites=suites,
                base=measured[0] if config.base is not None and measured else None,
                seed=config.seed,
            )
        )
    return measured


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
