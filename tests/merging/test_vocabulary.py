"""Vocabularies of model folders, compared token by token."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from merging.vocabulary import read_vocabulary, refuse_other_vocabularies, vocabulary_file


def model(folder: Path, content: Any = None, plain: str | None = None) -> Path:
    folder.mkdir(parents=True)
    if content is not None:
        (folder / "tokenizer.json").write_text(json.dumps(content))
    if plain is not None:
        (folder / "vocab.txt").write_text(plain)
    return folder


def test_every_kind_of_tokenizer_is_read(tmp_path: Path) -> None:
    added = [{"id": 2, "content": "<s>"}]
    expected = {"a": 0, "b": 1, "<s>": 2}
    as_mapping = model(tmp_path / "wordpiece", {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": added})
    as_list = model(tmp_path / "unigram", {"model": {"vocab": [["a", -1.5], ["b", -2.0]]}, "added_tokens": added})
    as_lines = model(tmp_path / "bert", plain="a\nb\n<s>\n")
    for folder in (as_mapping, as_list, as_lines):
        file = vocabulary_file(folder)
        assert file is not None
        assert read_vocabulary(file) == expected
    refuse_other_vocabularies({"x": as_mapping, "y": as_list, "z": as_lines})


def test_it_is_what_the_tokenizers_library_reads() -> None:
    file = vocabulary_file(Path(__file__).parents[2] / "models" / "pretrained" / "tiny-llm")
    assert file is not None
    assert read_vocabulary(file) == Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True)


def test_modules_have_theirs_in_a_folder(tmp_path: Path) -> None:
    model(tmp_path / "st" / "0_Transformer", plain="a\n")
    assert vocabulary_file(tmp_path / "st") == tmp_path / "st" / "0_Transformer" / "vocab.txt"


def test_other_numbers_are_refused_by_token(tmp_path: Path) -> None:
    models = {"first": model(tmp_path / "1", plain="a\nb\nc\n"), "second": model(tmp_path / "2", plain="a\nc\nb\n")}
    with pytest.raises(
        ValueError, match=r"second: expected the vocabulary of first, where token 'b' has the number 1, got 2"
    ):
        refuse_other_vocabularies(models)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    good, none = model(tmp_path / "good", plain="a\n"), model(tmp_path / "none")
    with pytest.raises(ValueError, match=r"bare: expected tokenizer.json or vocab.txt .* remove tokenizer_source"):
        refuse_other_vocabularies({"good": good, "bare": none})
    for i, content in enumerate(({}, [], {"model": 3}, {"model": {"vocab": {"a": "first"}}})):
        odd = model(tmp_path / f"odd{i}", content)
        with pytest.raises(ValueError, match=r"tokenizer.json: expected model.vocab"):
            refuse_other_vocabularies({"good": good, "odd": odd})
