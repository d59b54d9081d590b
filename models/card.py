"""Model cards of what training saves: README.md with front matter that the hub reads, and text that a person does.

Nothing is measured here: what a card says of data, settings and results comes from its caller.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from models.backbone import Backbone
from models.origin import row_by_hub_id, row_of
from storage.atomic import write_text
from storage.front_matter import front_matter_of
from storage.json_file import read_json
from storage.manifest import MANIFEST, write_manifest

CARD = "README.md"
HUB_LICENCES = ("apache-2.0", "mit", "gemma")
"""Licences of BACKBONES that the hub knows by that name; any other is `other` with a name and a link."""
LICENCE_KEYS = ("license", "license_name", "license_link")

LOADING = {
    "peft": (
        "from peft import PeftModel\n"
        "from transformers import AutoModel\n\n"
        "base = AutoModel.from_pretrained({base})\n"
        "model = PeftModel.from_pretrained(base, {name!r})"
    ),
    "sentence-transformers": (
        "from sentence_transformers import SentenceTransformer\n\n"
        "model = SentenceTransformer({name!r})\n"
        'embeddings = model.encode(["1, 1, 2, 3, 5", "2, 4, 6, 8, 10"])'
    ),
    "embarc": (
        "from models import load_embedder  # in a checkout of embarc: pooling and prompts included\n\n"
        "model = load_embedder({name!r})\n"
        'embeddings = model.encode(["1, 1, 2, 3, 5", "2, 4, 6, 8, 10"])'
    ),
}


@dataclass(frozen=True)
class Licence:
    """The licence of a base, which binds what is made of it."""

    front: Mapping[str, str]
    """Front matter of the hub: ``license``, and for a custom one ``license_name`` and ``license_link``."""
    text: str
    """The same for a reader, terms included; one paragraph."""
    restricted: bool = False
    """Whether there are terms beyond those of a permissive licence, or an agreement to accept."""


def licence_of(base: Path | None, row: Backbone | None = None) -> Licence:
    """The licence of a base: from its row of BACKBONES, else from the card in its folder.

    A folder that is known by its code only has the licence of its card, unless the row's has terms of its own.

    Args:
        base: folder of the base; None for one that is drawn from a seed.
        row: of the base; None looks for it by the folder.

    Example:
        >>> from models.backbones import find_backbone
        >>> licence_of(None, find_backbone("e5-mistral")).text
        'The base is under the licence mit.'
        >>> licence_of(None, find_backbone("embeddinggemma")).restricted
        True
    """
    front: dict[str, str] = {}
    if row is None and base is not None:
        card = base / CARD
        said = front_matter_of(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else {}
        front = {key: said[key] for key in LICENCE_KEYS if isinstance(said.get(key), str)}
        row = row_of(base)
        # Code tells how a text is read, and no licence: a model made from a permissive one may have another.
        if row is not None and row_by_hub_id(base) is None and row.licence_terms is None and "license" in front:
            row = None
    if row is None:
        if "license" not in front:
            return Licence({}, "The licence of the base is not stated in its folder.")
        name = front["license"]
        if name == "other" and "license_name" in front:
            name = front["license_name"]
        return Licence(front, f"The base is under the licence {name}, as its card says.")
    front = {"license": row.licence}
    if row.licence not in HUB_LICENCES:
        front = {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", row.licence.lower())}
        if row.repo_id is not None:
            front["license_link"] = f"https://huggingface.co/{row.repo_id}"
    terms = f": {row.licence_terms}" if row.licence_terms else ""
    gated = " The hub asks for an agreement before the base is downloaded." if row.gated else ""
    text = f"The base is under the licence {row.licence}{terms}.{gated}"
    return Licence(front, text, restricted=bool(row.licence_terms) or row.gated)


def embedder_card(
    *,
    title: str,
    library: Literal["peft", "sentence-transformers", "embarc"],
    relation: Literal["adapter", "finetune", "merge"] | None,
    licence: Licence,
    base: str | None = None,
    revision: str | None = None,
    obstacle: str | None = None,
    sections: Sequence[str] = (),
) -> str:
    """The text of README.md for a model that was trained here.

    Args:
        title: name of the folder; the example loads it by this name.
        library: what loads the folder; ``embarc`` where nothing else can.
        relation: to the base; None for a model without one.
        licence: of the base.
        base: hub id of the base, or its folder.
        revision: its commit, where it is a hub repository.
        obstacle: why neither PEFT nor plain sentence-transformers gives this model.
        sections: Markdown with a heading each.

    Example:
        >>> card = embedder_card(title="1-six", library="peft", relation="adapter", licence=Licence({}, "Not stated."), base="a/b")
        >>> card.splitlines()[1:3]
        ['base_model: a/b', 'base_model_relation: adapter']
    """
    front: dict[str, Any] = {}
    if base is not None and relation is not None:
        if not Path(base).is_absolute():
            front["base_model"] = base
        front["base_model_relation"] = relation
    front |= {"library_name": "peft" if relation == "adapter" else "sentence-transformers", **licence.front}
    front["pipeline_tag"] = "sentence-similarity"
    front["tags"] = ["embarc", "sentence-transformers", *(["lora"] if relation == "adapter" else [])]
    parts = [f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=10_000)}---", f"# {_line(title)}"]
    if base is not None:
        at = f" at revision `{revision}`" if revision else ""
        parts.append(f"Trained with embarc on the base `{_line(base)}`{at}.")
    else:
        parts.append("Trained with embarc from weights that were drawn from a seed.")
    parts += [*sections, "## Use", *_loading(title, library, base, revision, obstacle), "## Licence", licence.text]
    return "\n\n".join(parts) + "\n"


def _loading(title: str, library: str, base: str | None, revision: str | None, obstacle: str | None) -> list[str]:
    parts = []
    if obstacle is not None:
        parts.append(f"Only embarc loads this folder as it was trained: {obstacle}.")
    told = repr(base) + (f", revision={revision!r}" if revision else "")
    parts.append(_python(LOADING[library].format(name=title, base=told)))
    if library == "peft":
        parts += ["With the base's pooling, prompts and other modules:", _python(LOADING["embarc"].format(name=title))]
    return parts


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown; a bar in a cell is escaped.

    Example:
        >>> print(table(("metric", "value"), [("cka", 0.9)]))
        | metric | value |
        | --- | --- |
        | cka | 0.9 |
    """
    lines = [list(header), ["---"] * len(header), *([_cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def extend_card(folder: str | Path, sections: Sequence[str]) -> None:
    """Put sections before "## Use" of the card in a finished folder, and its new hash into the manifest."""
    folder = Path(folder)
    before, mark, after = (folder / CARD).read_text(encoding="utf-8").partition("\n## Use\n")
    assert mark, folder
    write_text(folder / CARD, before + "".join(f"\n{section}\n" for section in sections) + mark + after)
    manifest = read_json(folder / MANIFEST)
    files = manifest.pop("files")
    known = {name: entry["sha256"] for name, entry in files.items() if name != CARD}
    write_manifest(folder, known=known, **manifest)


def _cell(value: object) -> str:
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return _line(shown).replace("|", "\\|")


def _line(text: str) -> str:
    return " ".join(text.replace("`", "'").split())


def _python(code: str) -> str:
    return f"```python\n{code}\n```"
