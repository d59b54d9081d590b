"""Result files of MTEB: read into a report, and our own numbers written in their shape.

A results folder holds ``{model}/{revision}/{task}.json``, where a slash of the model's name is written ``__``, and beside the
tasks a ``model_meta.json`` with ``name`` and ``revision``. A task's file holds ``task_name`` and
``scores: {split: [{main_score, hf_subset, languages, ...}]}``. Files from before MTEB 1.11 hold ``mteb_dataset_name`` and the
splits at the top, each with its scores or with a mapping of them for every subset.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from evaluation.mteb_writing import META, NO_REVISION, write_mteb
from storage.text_file import read_text

__all__ = ["MTEBResult", "benchmark_scores", "read_mteb", "write_mteb"]

_OLD_KEYS = ("dataset_revision", "mteb_dataset_name", "mteb_version")
_OLD_SCORE_GROUPS = ("v_measures", "cos_sim", "euclidean", "manhattan", "dot", "max", "similarity")
_OLD_MAIN_SCORES = (
    ("main_score",),  # classification, bitext mining
    ("v_measure",),  # clustering
    ("ndcg_at_10",),  # retrieval
    ("map",),  # reranking
    ("cos_sim", "ap"),  # pair classification
    ("cos_sim", "spearman"),  # STS, summarisation
)
"""Where an old file has its main score; no kind of task has two of them. This is the table of MTEB's first leaderboard."""
_REVISION = re.compile(rf"[0-9a-f]{{7,64}}|external|{NO_REVISION}")


@dataclass(frozen=True, kw_only=True)
class MTEBResult:
    """One main score: a model on one subset of one split of a task."""

    model: str
    """As on the hub, such as ``intfloat/e5-mistral-7b-instruct``."""
    revision: str
    """Of the model; ``no_revision_available`` where the file tells none."""
    task: str
    split: str
    subset: str
    """``default`` where a task has one only."""
    main_score: float
    """As in the file. MTEB's own tasks are in 0..1, correlations in -1..1; the leaderboard shows them times 100."""
    task_type: str | None
    """Of a file that tells it; MTEB's own leave it to its table of tasks."""
    languages: tuple[str, ...]
    """ISO 639-3 and ISO 15924 codes, such as ``eng-Latn``; empty in old files."""


def read_mteb(path: str | os.PathLike[str]) -> list[MTEBResult]:
    """The main scores of a result file, or of every one below a folder, in the order of the file names.

    The folder may be that of the results, of a model, or of a revision. Keys that are not needed are passed over, with whatever
    they hold: MTEB itself writes NaN and Infinity there.

    Raises:
        ValueError: nothing to read, a file that is not JSON or not in MTEB's shape, a main score that is missing or not
            finite, or a file of which neither ``model_meta.json`` nor its folders tell the model. File and key are named.

    Reference:
        Muennighoff et al., "MTEB: Massive Text Embedding Benchmark", 2023; https://github.com/embeddings-benchmark/results.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp(), "org__model", "no_revision_available")
        >>> folder.mkdir(parents=True)
        >>> scores = {"test": [{"main_score": 0.8, "hf_subset": "default", "languages": ["eng-Latn"]}]}
        >>> _ = (folder / "STS12.json").write_text(json.dumps({"task_name": "STS12", "scores": scores}))
        >>> [(found.model, found.task, found.main_score) for found in read_mteb(folder)]
        [('org/model', 'STS12', 0.8)]
    """
    root = Path(path)
    if not root.is_dir():
        return list(_read_file(root))
    files = [
        file
        for file in sorted(root.rglob("*.json"))
        if file.name != META and not any(part.startswith(".") for part in file.relative_to(root).parts)
    ]
    if not files:
        raise ValueError(f"{root}: expected MTEB result files (MODEL/REVISION/TASK.json), got none; check the folder")
    return [found for file in files for found in _read_file(file)]


def benchmark_scores(results: Sequence[MTEBResult]) -> dict[str, dict[str, float]]:
    """Model -> task -> main score: the mean over the subsets of the split ``test``.

    A task without ``test`` has the mean over all its splits, as in MTEB's own ``get_score``. Range and best value are those of
    the task (see `MTEBResult`).

    Raises:
        ValueError: two results for one subset of a model's task, as from two revisions.

    Example:
        >>> same = dict(model="org/model", revision="1", task="STS17", split="test", task_type=None, languages=())
        >>> benchmark_scores([MTEBResult(subset="de-de", main_score=0.5, **same), MTEBResult(subset="fr-fr", main_score=0.7, **same)])
        {'org/model': {'STS17': 0.6}}
    """
    found: dict[tuple[str, str], dict[tuple[str, str], MTEBResult]] = {}
    for result in results:
        of_task = found.setdefault((result.model, result.task), {})
        other = of_task.setdefault((result.split, result.subset), result)
        if other is not result:
            raise ValueError(
                f"{result.model}, {result.task}, {result.split}, {result.subset}: expected one result, got those of the revisions "
                f"{other.revision} and {result.revision}; read the folder of one revision"
            )
    scores: dict[str, dict[str, float]] = {}
    for (model, task), of_task in found.items():
        splits = {split for split, _ in of_task}
        kept = {"test"} if "test" in splits else splits
        scores.setdefault(model, {})[task] = fmean(r.main_score for (split, _), r in of_task.items() if split in kept)
    return scores


def _read_file(file: Path) -> Iterator[MTEBResult]:
    content = _read_object(file)
    model, revision = _model_of(file)
    old = "scores" not in content
    task = _text(content, "mteb_dataset_name" if old else "task_name", file)
    kind = content.get("task_type")
    for split, subset, scores in _old_entries(content, file) if old else _entries(content, file):
        where = f"{split}.{subset}" if old else f"scores.{split}.{subset}"
        languages = scores.get("languages", ())
        yield MTEBResult(
            model=model,
            revision=revision,
            task=task,
            split=split,
            subset=subset,
            main_score=_main_score(scores, file, where, old=old),
            task_type=kind if isinstance(kind, str) else None,
            languages=tuple(str(code) for code in languages) if isinstance(languages, list) else (),
        )


def _entries(content: Mapping[str, Any], file: Path) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Split, subset and scores, as MTEB has written them since 1.11."""
    splits = content["scores"]
    if not isinstance(splits, Mapping) or not splits:
        raise _wrong(file, "scores", "a mapping of splits", splits)
    for split, entries in splits.items():
        if not isinstance(entries, list) or not entries:
            raise _wrong(file, f"scores.{split}", "a list with an entry a subset", entries)
        for number, entry in enumerate(entries):
            where = f"scores.{split}[{number}]"
            if not isinstance(entry, Mapping):
                raise _wrong(file, where, "a mapping", entry)
            yield split, _text(entry, "hf_subset", file, where), entry


def _old_entries(content: Mapping[str, Any], file: Path) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """The same of older files, where a mapping below a split is a subset unless it is one of the groups of scores."""
    splits = {key: value for key, value in content.items() if key not in _OLD_KEYS and isinstance(value, Mapping)}
    if not splits:
        raise ValueError(f"{file}: expected a key 'scores', or splits such as 'test', got neither; is it MTEB's?")
    for split, scores in splits.items():
        subsets = {k: v for k, v in scores.items() if isinstance(v, Mapping) and k not in _OLD_SCORE_GROUPS}
        for subset, entry in (subsets or {"default": scores}).items():
            yield split, subset, entry


def _main_score(scores: Mapping[str, Any], file: Path, where: str, *, old: bool) -> float:
    value: Any = None
    for keys in _OLD_MAIN_SCORES if old else (("main_score",),):
        value = scores
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            break
    if not isinstance(value, float) or not math.isfinite(value):
        raise _wrong(file, f"{where}.main_score", "a finite number", value)
    return value


def _model_of(file: Path) -> tuple[str, str]:
    """Name and revision of the model: from ``model_meta.json`` beside the file, else from the folders."""
    meta = file.with_name(META)
    if meta.is_file():
        content = _read_object(meta)
        name = _text(content, "name" if "name" in content else "model_name", meta)
        revision = content.get("revision")
        return name, revision if isinstance(revision, str) and revision else NO_REVISION
    folder, above = file.absolute().parent.name, file.absolute().parent.parent.name
    if "__" in above or _REVISION.fullmatch(folder):
        return above.replace("__", "/"), folder
    if "__" in folder:  # before MTEB had folders of revisions
        return folder.replace("__", "/"), NO_REVISION
    raise ValueError(
        f"{file}: expected MODEL/REVISION/{file.name} or a {META} beside it, got the folders {above}/{folder}; "
        f'write {META} with {{"name": ..., "revision": ...}}'
    )


def _read_object(file: Path) -> Mapping[str, Any]:
    """A JSON object; all its numbers become floats, so that none is too long for Python."""
    text = read_text(file, "an MTEB result file")
    try:
        content = json.loads(text, parse_int=float)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}, line {error.lineno}: expected JSON, got {error.msg!r}; download it again") from None
    except RecursionError:
        raise ValueError(
            f"{file}: expected JSON of modest depth, got hundreds of nested levels; is it MTEB's?"
        ) from None
    if not isinstance(content, Mapping):
        raise _wrong(file, "the file", "an object", content)
    return content


def _text(content: Mapping[str, Any], key: str, file: Path, where: str = "") -> str:
    value = content.get(key)
    if not isinstance(value, str) or not value.strip():
        raise _wrong(file, f"{where}.{key}".lstrip("."), "a text", value)
    return value


def _wrong(file: Path, key: str, expected: str, value: Any) -> ValueError:
    shown = "nothing" if value is None else f"{value!r:.60}"
    return ValueError(f"{file}: {key}: expected {expected}, got {shown}; correct the file or leave it out")
