"""The end token that last-token pooling reads."""

import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from models.end_token import append_eos, complete_tokenizer


def test_append_eos_is_idempotent_and_needs_an_end_token(mistral_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(mistral_folder)
    bare = tokenizer("1, 2")["input_ids"]
    for _ in range(2):
        append_eos(tokenizer, source="here")
        assert tokenizer("1, 2")["input_ids"] == [*bare, 2]
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="tokenizer of here: expected an end token"):
        append_eos(tokenizer, source="here")


def test_a_completed_folder_ends_every_text_without_us(mistral_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(mistral_folder, tmp_path / "copy"))
    bare = AutoTokenizer.from_pretrained(folder)("1, 2")["input_ids"]
    assert bare[-1] != 2
    complete_tokenizer(folder)
    assert AutoTokenizer.from_pretrained(folder)("1, 2")["input_ids"] == [*bare, 2]
