"""The vocabulary of a model folder: which row of the embeddings belongs to which token.

Rows are merged by their number, so models whose tokenizers number tokens differently would be merged askew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from storage.json_file import read_json
from storage.text_file import read_text

FULL, PLAIN = "tokenizer.json", "vocab.txt"


def vocabulary_file(folder: Path) -> Path | None:
    """Return the file that numbers the tokens, of the folder or of the first of its folders that has one."""
    for place in (folder, *sorted(inner for inner in folder.iterdir() if inner.is_dir())):
        for name in (FULL, PLAIN):
            if (place / name).is_file():
                return place / name
    return None


def read_vocabulary(file: Path) -> dict[str, int]:
    """Return the number of every token.

    Raises:
        ValueError: the file is not what its name says.
    """
    if file.name == FULL:
        return _from_json(file)
    return {token: number for number, token in enumerate(read_text(file).split("\n")) if token}


def refuse_other_vocabularies(models: Mapping[str, Path]) -> None:
    """Compare the vocabularies of model folders, by the names that the user knows them by.

    Raises:
        ValueError: a token has another number than in the first model, or is there in one of the two only; or a
            model's vocabulary cannot be read.
    """
    files: dict[str, Path] = {}
    for name, folder in models.items():
        file = vocabulary_file(folder)
        if file is None:
            raise ValueError(
                f"{name}: expected {FULL} or {PLAIN} to compare vocabularies by, got neither; add the tokenizer or "
                "remove tokenizer_source from the recipe"
            )
        files[name] = file
    first_name, first = next(iter(files.items()))
    for name, file in files.items():
        if file.read_bytes() == first.read_bytes():
            continue
        expected, found = read_vocabulary(first), read_vocabulary(file)
        if expected != found:
            token = min(expected.items() ^ found.items(), key=lambda item: (item[1], item[0]))[0]
            raise ValueError(
                f"{name}: expected the vocabulary of {first_name}, where token {token!r} has the number "
                f"{expected.get(token)}, got {found.get(token)}; bring the models to one vocabulary before they are merged"
            )


def _from_json(file: Path) -> dict[str, int]:
    content = read_json(file)
    model = content.get("model") if isinstance(content, dict) else None
    tokens = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(tokens, list):
        tokens = {entry[0]: i for i, entry in enumerate(tokens) if isinstance(entry, list) and entry}
    if not isinstance(tokens, dict) or not all(isinstance(number, int) for number in tokens.values()):
        raise ValueError(f"{file}: expected model.vocab, tokens with their numbers, got none; fetch the file again")
    return tokens | _added(content.get("added_tokens"))


def _added(tokens: Any) -> dict[str, int]:
    entries: Sequence[Any] = tokens if isinstance(tokens, list) else []
    return {
        entry["content"]: entry["id"] for entry in entries if isinstance(entry, dict) and {"content", "id"} <= {*entry}
    }
