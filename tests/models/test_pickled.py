from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models import pickled as pickled_module
from models.embedder import encode, load_embedder
from models.locate import hub_origin
from models.pickled import convert_pickled
from tests.models.hub_folders import tiny_rows, write_hub_folder


class Evil:
    """Unpickled without care, it makes a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.place),)


def pickled(folder: Path, **settings: object) -> Path:
    """The folder with each of its weight files as a pickle."""
    for file in list(folder.rglob("*.safetensors")):
        torch.save(load_file(file), file.with_name("pytorch_model.bin"), **settings)
        file.unlink()
    return folder


@pytest.fixture
def pickles(tiny_folder: Path, tmp_path: Path) -> Path:
    return pickled(Path(shutil.copytree(tiny_folder, tmp_path / "pickles")))


def test_pickled_weights_are_refused_without_the_flag(pickles: Path) -> None:
    with pytest.raises(ValueError, match=r"pickled ones \(pytorch_model\.bin\).*--pickled-weights") as caught:
        load_embedder(pickles)
    assert str(pickles) in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_converted_weights_are_the_same(zipped: bool, tiny_folder: Path, tmp_path: Path, texts: list[str]) -> None:
    folder = pickled(shutil.copytree(tiny_folder, tmp_path / "p"), _use_new_zipfile_serialization=zipped)
    before = sorted(folder.rglob("*"))
    loaded = load_embedder(folder, cache=tmp_path / "cache", pickled_weights=True)
    assert torch.equal(encode(loaded, texts), encode(load_embedder(tiny_folder), texts))
    assert sorted(folder.rglob("*")) == before


def test_a_module_with_a_pickle_beside_safetensors_of_another_is_converted(tmp_path: Path, texts: list[str]) -> None:
    """As in sentence-t5's repository: the transformer in safetensors, its Dense module in pytorch_model.bin."""
    with tiny_rows():
        whole = write_hub_folder(tmp_path / "hub", "embeddinggemma")
    folder = Path(shutil.copytree(whole, tmp_path / "mixed"))
    for dense in ("2_Dense", "3_Dense"):
        pickled(folder / dense)
    assert (folder / "model.safetensors").is_file()
    loaded = load_embedder(folder, cache=tmp_path / "cache", pickled_weights=True)
    whole = Path(shutil.copytree(whole, tmp_path / "whole"))
    assert torch.equal(encode(loaded, texts), encode(load_embedder(whole), texts))


def test_a_content_is_converted_once(pickles: Path, tmp_path: Path) -> None:
    first = convert_pickled(pickles, cache=tmp_path / "cache")
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert convert_pickled(pickles, cache=tmp_path / "cache") == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    config = pickles / "config.json"
    config.write_text(config.read_text() + "\n")
    assert convert_pickled(pickles, cache=tmp_path / "cache") != first


def test_a_conversion_that_another_process_made_meanwhile_is_taken(
    pickles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(folder: Path, to: Path, *files: list[Path]) -> None:
        monkeypatch.setattr(pickled_module, "_convert", convert)
        convert_pickled(pickles, cache=tmp_path / "cache")
        convert(folder, to, *files)

    convert = pickled_module._convert
    monkeypatch.setattr(pickled_module, "_convert", slow)
    made = convert_pickled(pickles, cache=tmp_path / "cache")
    assert (made / "model.safetensors").is_file()
    assert len(list((tmp_path / "cache" / "converted").iterdir())) == 1


def test_shards_and_their_index_are_converted(tiny_folder: Path, tmp_path: Path, texts: list[str]) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "shards"))
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    shards = {"pytorch_model-00001-of-00002.bin": names[:5], "pytorch_model-00002-of-00002.bin": names[5:]}
    for shard, held in shards.items():
        torch.save({name: state[name] for name in held}, folder / shard)
    index = {"metadata": {}, "weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    loaded = load_embedder(folder, cache=tmp_path / "cache", pickled_weights=True)
    assert torch.equal(encode(loaded, texts), encode(load_embedder(tiny_folder), texts))


def test_dense_modules_and_the_hub_id_come_along(tmp_path: Path, texts: list[str]) -> None:
    folder = write_hub_folder(tmp_path, "embeddinggemma")
    expected = encode(load_embedder("embeddinggemma", cache=tmp_path, offline=True), texts)
    pickled(folder)
    with pytest.raises(ValueError, match="--pickled-weights"):
        load_embedder("embeddinggemma", cache=tmp_path, offline=True)
    loaded = load_embedder("embeddinggemma", cache=tmp_path, offline=True, pickled_weights=True)
    assert torch.equal(encode(loaded, texts), expected)
    assert hub_origin(convert_pickled(folder, cache=tmp_path)) == hub_origin(folder)


def test_tensors_that_share_memory_are_both_written(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    torch.save({"a": weight, "b": weight, "c": weight.T}, tmp_path / "pytorch_model.bin")
    state = load_file(convert_pickled(tmp_path, cache=tmp_path / "cache") / "model.safetensors")
    assert torch.equal(state["a"], weight)
    assert torch.equal(state["b"], weight)
    assert torch.equal(state["c"], weight.T)


def test_a_pickle_that_would_run_code_is_refused_and_nothing_is_left(pickles: Path, tmp_path: Path) -> None:
    torch.save({"weight": Evil(tmp_path / "ran")}, pickles / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: expected a pickle of tensors only") as caught:
        load_embedder(pickles, cache=tmp_path / "cache", pickled_weights=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.ones(1)]])
def test_a_pickle_of_other_things_is_refused(content: object, pickles: Path, tmp_path: Path) -> None:
    torch.save(content, pickles / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: expected tensors by name"):
        load_embedder(pickles, cache=tmp_path / "cache", pickled_weights=True)


def test_a_file_that_is_cut_is_refused(pickles: Path, tmp_path: Path) -> None:
    file = pickles / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: expected a pickle of tensors only"):
        load_embedder(pickles, cache=tmp_path / "cache", pickled_weights=True)
