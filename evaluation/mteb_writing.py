"""Our own numbers as result files of MTEB; `evaluation.mteb` describes the shape and reads it back."""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.report_schema import HIDDEN_SUITE
from storage.json_file import read_json, write_json

META = "model_meta.json"
NO_REVISION = "no_revision_available"
LANGUAGE = "zxx-Latn"
"""ISO 639-3 for "no linguistic content": the texts are numbers."""
_LONGEST_NAME = 120


def write_mteb(
    folder: Path, row: Mapping[str, Any], *, revision: str | None, suites: Mapping[str, Sequence[str]]
) -> list[Path]:
    """Write a row's numbers as ``{model}/{revision}/{task}.json``, one task a suite, and ``model_meta.json``.

    The task of the suite ``held-out`` is ``EmbarcHeldOutClustering``. Its main score is ``silhouette_true`` (-1..1, 1 is best);
    the other numbers of the suite stand beside it, a nested one as ``null_z``. ``dataset_revision`` is the beginning of the
    SHA-256 of the texts joined by line ends, and ``mteb_version`` is null, because MTEB computed none of it. A suite
    whose silhouette is undefined gets no file, and an earlier one is removed: MTEB cannot average over null.

    Args:
        folder: of the results; made where it is missing.
        row: of a report, measured here.
        revision: of the model, as on the hub; None where there is none.
        suites: name -> texts of each suite to write; ``paper`` is the row itself, the others are in ``row["suites"]``.

    Returns:
        The files of the tasks that were written.

    Raises:
        ValueError: a row that was not measured, a suite that the row does not have or that chose the model, two suites with one
            task's name, or another model's results in the folder that the model's name leads to.

    Example:
        >>> import tempfile
        >>> row = {"name": "org/model", "source": "measured", "silhouette_true": 0.25, "suites": {}}
        >>> written = write_mteb(Path(tempfile.mkdtemp()), row, revision=None, suites={"paper": ["1, 2", "2, 4"]})
        >>> "/".join(written[0].parts[-3:])
        'org__model/no_revision_available/EmbarcPaperClustering.json'
    """
    if row["source"] != "measured":
        raise ValueError(f"row {row['name']!r}: expected a measured one, got {row['source']!r}; leave it out")
    tasks = _tasks(row, suites)
    target = folder / file_name(row["name"]) / file_name(revision or NO_REVISION)
    about = {"name": row["name"], "revision": revision or NO_REVISION}
    _refuse_another_model(target / META, about)
    written = []
    for task, suite in tasks.items():
        scores = _scores(row if suite == "paper" else row["suites"][suite])
        if scores is None:
            (target / f"{task}.json").unlink(missing_ok=True)
            continue
        write_json(target / META, about)
        write_json(target / f"{task}.json", _content(task, suites[suite], scores))
        written.append(target / f"{task}.json")
    return written


def _refuse_another_model(meta: Path, about: Mapping[str, Any]) -> None:
    """A folder that was renamed by hand, or by a filesystem without capitals, is not overwritten."""
    found = read_json(meta) if meta.is_file() else about
    if any(found.get(key) != value for key, value in about.items()):
        raise ValueError(
            f"{meta}: expected the model {about['name']!r} at {about['revision']!r}, got {found.get('name')!r} at "
            f"{found.get('revision')!r}; choose another folder"
        )


def file_name(name: str) -> str:
    """A model's name or revision as the name of a folder: MTEB's rule (``/`` becomes ``__``), made safe.

    A name that cannot be read back from that, such as one with a blank, ends in a part of its SHA-256: no two names lead to
    one folder.

    Example:
        >>> file_name("org/model"), file_name("org/a model"), file_name("../../etc")
        ('org__model', 'org__a_model-76dcb994', '__..__etc-74ccf3c5')
    """
    safe = re.sub(r"[^\w.+-]", "_", name.replace("/", "__"), flags=re.ASCII).lstrip(".")[:_LONGEST_NAME]
    if safe and safe.replace("__", "/") == name:
        return safe
    return f"{safe}-{_digest(name)}"


def task_name(suite: str) -> str:
    """The task of a suite: its words, joined. A suite without letters or digits of ASCII has a part of its SHA-256.

    Example:
        >>> task_name("held-out"), task_name("my_texts")
        ('EmbarcHeldOutClustering', 'EmbarcMyTextsClustering')
    """
    words = re.findall(r"[A-Za-z0-9]+", suite) or [_digest(suite)]
    return f"Embarc{''.join(word[0].upper() + word[1:] for word in words)}Clustering"


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _tasks(row: Mapping[str, Any], suites: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Name of the task -> suite."""
    tasks: dict[str, str] = {}
    for suite in suites:
        task = task_name(suite)
        if suite == HIDDEN_SUITE:
            raise ValueError(
                f"suite {suite!r}: expected a suite that chose nothing, got the one for choosing; leave it out"
            )
        if suite != "paper" and suite not in row["suites"]:
            raise ValueError(f"suite {suite!r}: expected one of row {row['name']!r}, got none of its; measure it first")
        if task in tasks:
            raise ValueError(
                f"suite {suite!r}: expected a task of its own, got {task} as for suite {tasks[task]!r}; rename it"
            )
        tasks[task] = suite
    return tasks


def _scores(report: Mapping[str, Any] | None) -> dict[str, float] | None:
    """The numbers of a suite, main score first; None where that is undefined."""
    if report is None or report.get("silhouette_true") is None:
        return None
    numbers = {"main_score": report["silhouette_true"]}
    for key, value in report.items():
        group = (
            value if isinstance(value, Mapping) and key not in ("suites", "benchmarks", "confusion") else {"": value}
        )
        for part, number in group.items():
            if isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number):
                numbers[f"{key}_{part}" if part else key] = number
    return numbers


def _content(task: str, texts: Sequence[str], scores: Mapping[str, float]) -> dict[str, Any]:
    return {
        "dataset_revision": hashlib.sha256("\n".join(texts).encode("utf-8")).hexdigest()[:40],
        "task_name": task,
        "task_type": "Clustering",
        "mteb_version": None,
        "scores": {"test": [{**scores, "hf_subset": "default", "languages": [LANGUAGE]}]},
        "evaluation_time": None,
        "kg_co2_emissions": None,
    }
