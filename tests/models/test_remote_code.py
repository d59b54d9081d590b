from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import dynamic_module_utils

from models.embedder import encode, load_embedder
from models.remote_code import find_remote_code
from tests.models.hub_folders import COMMIT, NAMES, edit_json, write_hub_folder

CODE = """
open({ran!r}, "w").close()
from transformers import Qwen3Config, Qwen3Model

class OwnConfig(Qwen3Config):
    model_type = "own"

class OwnModel(Qwen3Model):
    config_class = OwnConfig
"""


@pytest.fixture
def own(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model as a hub snapshot under a model type that only its own code has; the code leaves a file `ran`."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "code"))
    repository = tmp_path / "models--some--own"
    folder = Path(shutil.copytree(tiny_folder, repository / "snapshots" / COMMIT))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    code = {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    edit_json(folder / "config.json", model_type="own", auto_map=code)
    (folder / "modeling_own.py").write_text(CODE.format(ran=str(tmp_path / "ran")))
    return folder


@pytest.mark.parametrize("by_name", [False, True])
def test_code_is_named_and_never_run_without_the_flag(own: Path, tmp_path: Path, by_name: bool) -> None:
    named = "some/own" if by_name else own
    with pytest.raises(ValueError, match=r"class OwnModel of modeling_own\.py in some/own") as caught:
        load_embedder(named, cache=tmp_path, offline=True)
    assert "--trust-remote-code" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_trusted_code_is_run_at_the_commit_and_said(
    own: Path, tmp_path: Path, tiny_folder: Path, texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = load_embedder("some/own", cache=tmp_path, offline=True, revision=COMMIT, trust_remote_code=True)
    assert (tmp_path / "ran").exists()
    assert type(loaded[0].model).__name__ == "OwnModel"
    assert torch.equal(encode(loaded, texts), encode(load_embedder(tiny_folder), texts))
    said = capsys.readouterr().err
    assert "some/own" in said
    assert COMMIT in said


def test_a_snapshot_and_a_local_folder_fix_their_own_code(own: Path, tmp_path: Path) -> None:
    load_embedder(own, trust_remote_code=True)
    load_embedder(f"some/own@{COMMIT}", cache=tmp_path, offline=True, trust_remote_code=True)
    load_embedder(shutil.copytree(own, tmp_path / "local"), trust_remote_code=True)


@pytest.mark.parametrize("revision", [None, "main"])
def test_trusted_code_needs_a_commit(own: Path, tmp_path: Path, revision: str | None) -> None:
    with pytest.raises(ValueError, match=f"a commit of 40 hexadecimal digits .*give some/own@{COMMIT}"):
        load_embedder("some/own", cache=tmp_path, offline=True, revision=revision, trust_remote_code=True)
    assert not (tmp_path / "ran").exists()


def test_code_of_another_repository_is_refused_even_when_trusted(own: Path, tmp_path: Path) -> None:
    edit_json(own / "config.json", auto_map={"AutoModel": "else/where--modeling_own.OwnModel"})
    with pytest.raises(ValueError, match=r"class OwnModel of modeling_own\.py in else/where, which no commit"):
        load_embedder(own, trust_remote_code=True)
    assert not (tmp_path / "ran").exists()


def test_code_that_is_not_there_is_refused(own: Path) -> None:
    (own / "modeling_own.py").unlink()
    with pytest.raises(ValueError, match=r"expected modeling_own\.py beside its weights"):
        load_embedder(own, trust_remote_code=True)


def test_a_module_of_ones_own_is_remote_code_too(tiny_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "copy"))
    modules = folder / "modules.json"
    modules.write_text(
        modules.read_text().replace("sentence_transformers.base.modules.transformer.Transformer", "own.Reader")
    )
    with pytest.raises(ValueError, match=r"class Reader of own\.py"):
        load_embedder(folder)


@pytest.mark.parametrize("name", NAMES)
def test_no_backbone_needs_code(name: str, tmp_path: Path) -> None:
    assert find_remote_code(write_hub_folder(tmp_path, name)) is None


def test_code_beside_a_known_model_type_is_not_run_by_the_flag(own: Path, tmp_path: Path) -> None:
    edit_json(own / "config.json", model_type="qwen3")
    assert type(load_embedder(own, trust_remote_code=True)[0].model).__name__ == "Qwen3Model"
    assert not (tmp_path / "ran").exists()
