"""The model card of a merge: README.md with front matter that the hub reads and text that a person does.

All of it comes from the content of merge.json; nothing is measured here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from merging.methods import METHODS
from storage.front_matter import front_matter_of as front_matter_of
from storage.manifest import fingerprint_of

Library = Literal["sentence-transformers", "transformers", "peft", "embarc"]

INDISTINGUISHABLE = 1e-3
"""Distance to the plain soup, relative to the soup, below which a merge is called the same: half a step of bfloat16."""

CARRIED = ("license", "license_name", "license_link", "language", "pipeline_tag")
"""Front matter of the donor's card that holds for the merge too."""

SNAPSHOT = re.compile(r"(?:^|/)models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/[^/]+/?$")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, kw_only=True)
class CardNotes:
    """What is known of a merged model beside its files."""

    front: Mapping[str, Any] = field(default_factory=dict)
    """Front matter that goes before the donor's: licence."""
    sections: tuple[str, ...] = ()
    """Markdown with a heading each, put before how to load."""
    library: Library | None = None
    """What loads the result, where it is not what loads its base."""


LOADING = {
    "sentence-transformers": (
        "from sentence_transformers import SentenceTransformer\n\n"
        "model = SentenceTransformer({name!r})\n"
        'embeddings = model.encode(["1, 1, 2, 3, 5", "2, 4, 6, 8, 10"])'
    ),
    "embarc": (
        "from models import load_embedder  # in a checkout of embarc\n\n"
        "model = load_embedder({name!r})\n"
        'embeddings = model.encode(["1, 1, 2, 3, 5", "2, 4, 6, 8, 10"])'
    ),
    "transformers": (
        "from transformers import AutoModel, AutoTokenizer\n\n"
        "tokenizer = AutoTokenizer.from_pretrained({name!r})\n"
        "model = AutoModel.from_pretrained({name!r})"
    ),
    "peft": (
        "from peft import PeftModel\n"
        "from transformers import AutoModel\n\n"
        "model = PeftModel.from_pretrained(AutoModel.from_pretrained({base!r}), {name!r})"
    ),
}


def model_card(
    report: Mapping[str, Any],
    recipe_text: str | None = None,
    front_matter: Mapping[str, Any] | None = None,
    *,
    name: str = "merged",
    library: Library | None = None,
    notes: CardNotes | None = None,
) -> str:
    """Return the text of README.md for a merge.

    Args:
        report: content of merge.json.
        recipe_text: the recipe that was run, as YAML; by default one is written from the report.
        front_matter: of the donor's own card, see :func:`front_matter_of`; licence, language and tags are kept.
        name: of the merged model: the title, and what the example loads.
        library: of the front matter, and what the result is loaded with unless ``notes`` say another; by default what
            its base, or else its first input, is.
        notes: licence and the like, from a caller who knows the model.

    >>> card = model_card({"method": "linear", "inputs": [{"path": "a"}, {"path": "b"}]})
    >>> card.splitlines()[:3]
    ['---', 'base_model_relation: merge', 'tags:']
    """
    told = notes or CardNotes()
    loader = told.library or library or _library(report)
    sections = (
        _front(report, {**(front_matter or {}), **told.front}, library or loader),
        f"# {_inline(name)}",
        _introduction(report),
        "## Inputs\n\n" + _inputs(report),
        "## Method\n\n" + _method(report),
        "## What the merge did\n\n" + _effect(report.get("summary") or {}),
        *told.sections,
        "## Use\n\n" + _fenced(LOADING[loader].format(name=name, base=_base_path(report)), "python"),
        "## Recipe\n\n" + _fenced(recipe_text or _recipe(report), "yaml"),
    )
    return "\n\n".join(sections) + "\n"


def hub_id(path: str) -> str | None:
    """Return the hub's name for a model: of a snapshot in the hub's cache, or of ``owner/name`` that is no folder here.

    >>> hub_id("/home/me/.cache/huggingface/hub/models--intfloat--e5/snapshots/0a1b"), hub_id("/models/e5")
    ('intfloat/e5', None)
    """
    if found := SNAPSHOT.search(path):
        return f"{found['owner']}/{found['name']}"
    return path if HUB_ID.fullmatch(path) and not Path(path).exists() else None


def _library(report: Mapping[str, Any]) -> Library:
    donor: Mapping[str, Any] = report.get("base") or next(iter(report["inputs"]), {})
    return "transformers" if donor.get("kind") == "transformers" else "sentence-transformers"


def _front(report: Mapping[str, Any], donor: Mapping[str, Any], library: Library) -> str:
    models = [report.get("base"), *report["inputs"], *(row.get("base") for row in report["inputs"])]
    ids = list(dict.fromkeys(found for row in models if row and (found := hub_id(str(row["path"])))))
    front: dict[str, Any] = {"base_model": ids} if ids else {}
    # A single model is no merge: its adapter was folded into it.
    front["base_model_relation"] = "finetune" if report["method"] == "passthrough" and ids else "merge"
    if any(row.get("kind") for row in report["inputs"]):
        # The hub knows no library of this name; what the folder's layout is says what it is like.
        front["library_name"] = _library(report) if library == "embarc" else library
    front |= {key: donor[key] for key in CARRIED if key in donor and _is_text(donor[key])}
    tags = donor.get("tags")
    front["tags"] = list(dict.fromkeys(["merge", "embarc", *(tags if tags and _is_text(tags) else ())]))
    return f"---\n{_yaml(front)}---"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(entry, str) for entry in value))


def _introduction(report: Mapping[str, Any]) -> str:
    row, count = METHODS.get(report["method"]), len(report["inputs"])
    said = f" ({row.summary})" if row is not None else ""
    of = "one model" if count == 1 else f"{count} models"
    return f"A merge of {of} by `{report['method']}`{said}, made with embarc. Every figure of it is in `merge.json`."


def _inputs(report: Mapping[str, Any]) -> str:
    weights = (report.get("parameters") or {}).get("weights")
    inputs = report["inputs"]
    told = weights if isinstance(weights, list) and len(weights) == len(inputs) else [None] * len(inputs)
    rows = [("base", report["base"], None)] if report.get("base") else []
    rows += [(f"input {index}", row, weight) for index, (row, weight) in enumerate(zip(inputs, told, strict=True))]
    lines = [(role, _named(row), row.get("kind") or "", _number(weight), _print_of(row)) for role, row, weight in rows]
    return _table(("role", "model", "kind", "weight", "SHA-256 of the weights"), lines)


def _named(row: Mapping[str, Any]) -> str:
    path = f"`{_inline(str(row['path']))}`"
    return f"{path} on `{_inline(str(row['base']['path']))}`" if row.get("base") else path


def _print_of(row: Mapping[str, Any]) -> str:
    hashes = row.get("sha256")
    return f"`{fingerprint_of(hashes)[:16]}`" if isinstance(hashes, dict) and hashes else ""


def _method(report: Mapping[str, Any]) -> str:
    space = {"task_vector": "differences from the base", "weight": "the weights themselves"}.get(
        report.get("space", "")
    )
    lines = [(f"`{key}`", _number(value)) for key, value in _parameters(report).items()]
    parts = [f"`{report['method']}`" + (f" on {space}." if space else ".")]
    if report.get("reference"):
        parts.append(f"Reference: {report['reference']}.")
    return " ".join(parts) + ("\n\n" + _table(("parameter", "value"), lines) if lines else "")


def _effect(summary: Mapping[str, Any]) -> str:
    lines = []
    mean, largest = summary.get("mean_angle_degrees"), summary.get("largest_angle_degrees")
    if mean is not None and largest is not None:
        lines.append(
            f"Angles between the inputs, tensor by tensor: {mean:.3g} degrees on average, {largest:.3g} at most."
        )
    of = summary.get("distances_relative_to", "the soup")
    for key, other in (
        ("distance_to_soup", "the plain soup of the same inputs"),
        ("distance_to_linear", "the line at the same weights"),
    ):
        if (distance := summary.get(key)) is not None:
            lines.append(f"Distance to {other}: {distance:.3g} (relative to {of}).")
    if shares := summary.get("dominance"):
        lines.append(f"Share of the result along each input: {', '.join(f'{share:.0%}' for share in shares)}.")
    if (distance := summary.get("distance_to_soup")) is not None and distance < INDISTINGUISHABLE:
        lines.append(f"**Indistinguishable from that plain soup: they differ by less than {INDISTINGUISHABLE:.1%}.**")
    lines += [_inline(str(note)) for note in summary.get("notes") or ()]
    return "\n".join(f"- {line}" for line in lines) or "Nothing was measured."


def _parameters(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that were set; no value, and an empty one, say nothing."""
    given = {key: report.get(key) for key in ("granularity", "compat")} | dict(report.get("parameters") or {})
    return {key: value for key, value in given.items() if value not in (None, [], {}, "")}


def _recipe(report: Mapping[str, Any]) -> str:
    """Return a recipe of ours that asks for the same merge."""
    row, parameters = METHODS.get(report["method"]), _parameters(report)
    if "t" in parameters or (row is not None and "weights" not in row.takes):
        parameters.pop("weights", None)
    recipe: dict[str, Any] = {"method": report["method"]}
    if report.get("base"):
        recipe["base"] = str(report["base"]["path"])
    recipe["inputs"] = [_reference(row) for row in report["inputs"]]
    if report.get("space"):
        recipe["space"] = report["space"]
    return _yaml(recipe | parameters)


def _reference(row: Mapping[str, Any]) -> Any:
    if row.get("kind") == "adapter" and row.get("base"):
        return {"model": str(row["base"]["path"]), "adapter": str(row["path"])}
    return str(row["path"])


def _base_path(report: Mapping[str, Any]) -> str:
    base = report.get("base")
    return (hub_id(str(base["path"])) or str(base["path"])) if base else "base"


def _yaml(content: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=10_000)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    used = [index for index in range(len(header)) if any(row[index] for row in rows)]
    lines = [[header[index] for index in used], ["---"] * len(used), *([row[index] for index in used] for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _number(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_number(entry) for entry in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else _inline(str(value))


def _inline(text: str) -> str:
    """Return the text on one line and without backticks, which would end a code span."""
    return " ".join(text.replace("`", "'").split())


def _fenced(text: str, language: str) -> str:
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
