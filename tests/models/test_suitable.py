"""Folders that are refused before a weight is read, each in one line."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models import backbones
from models.embedder import load_embedder
from tests.models.hub_folders import edit_json, write_hub_folder


def refused(folder: Path | str, message: str, **settings: object) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_embedder(folder, **settings)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_tokenizer(tiny_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "copy"))
    (folder / "tokenizer.json").unlink()
    refused(folder, rf"{folder}: expected a tokenizer \(tokenizer\.json, .*copy it")


def test_a_transformers_that_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_hub_folder(tmp_path, "gte-large")
    rows = tuple(replace(row, transformers="99.1") if row.name == "gte-large" else row for row in backbones._ROWS)
    monkeypatch.setattr(backbones, "_ROWS", rows)
    refused("gte-large", r"gte-large: expected transformers 99\.1 or later.*pip install", cache=tmp_path, offline=True)


def test_a_version_is_compared_by_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_hub_folder(tmp_path, "gte-large")
    monkeypatch.setattr("models.suitable.version", lambda _: "5.9.1")
    refused("gte-large", r"expected transformers 5\.18 or later.*got 5\.9\.1", cache=tmp_path, offline=True)


def test_float16_for_a_model_whose_activations_leave_its_range(tmp_path: Path) -> None:
    folder = write_hub_folder(tmp_path, "embeddinggemma")
    refused(folder, r"--dtype: expected bfloat16 or float32 .*no float16", dtype=torch.float16)
    load_embedder(folder, dtype=torch.bfloat16)
    edit_json(folder / "config.json", dtype="float16")
    refused(folder, "--dtype: expected bfloat16 or float32")
    load_embedder(folder, dtype=torch.float32)
