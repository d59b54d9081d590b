from __future__ import annotations

import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, OfflineModeIsEnabled, RevisionNotFoundError

from models import locate
from models.locate import UnreachableModel, base_folder, hub_origin

E5 = "intfloat/e5-mistral-7b-instruct"


def fill_cache(cache: Path, repo_id: str, source: Path, commit: str = "c0ffee") -> Path:
    """A hub cache as the library lays it out, with one snapshot."""
    repository = cache / f"models--{repo_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    shutil.copytree(source, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return snapshot


def hub_error(kind: type[Exception]) -> Exception:
    return kind.__new__(kind)


def answer(monkeypatch: pytest.MonkeyPatch, outcome: Exception | str) -> None:
    """Let the hub's first answer be a commit or an error."""

    def model_info(*_: object, **__: object) -> SimpleNamespace:
        if isinstance(outcome, Exception):
            raise outcome
        return SimpleNamespace(sha=outcome)

    monkeypatch.setattr(locate, "HfApi", lambda: SimpleNamespace(model_info=model_info))


def one_line_with_the_way_out(message: str, repo_id: str = E5) -> bool:
    return "\n" not in message and repo_id in message and "tiny-llm, tiny-encoder" in message


@pytest.mark.parametrize("name", ["e5-mistral", E5, "nobody/has-this-model"])
@pytest.mark.parametrize("offline", [False, True])
def test_a_hub_model_without_network_fails_in_seconds(
    name: str, offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(UnreachableModel) as caught:
        base_folder(name, cache=tmp_path, offline=offline)
    assert time.monotonic() - started < 5
    assert one_line_with_the_way_out(str(caught.value), name if "/" in name else E5)


@pytest.mark.parametrize(
    "error", [OfflineModeIsEnabled("off"), TimeoutError("slow"), hub_error(locate.HubTransportError)]
)
def test_a_cached_snapshot_serves_when_the_hub_does_not_answer(
    error: Exception, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = fill_cache(tmp_path, E5, tiny_folder)
    answer(monkeypatch, error)
    found = base_folder("e5-mistral", cache=tmp_path)
    assert found == snapshot
    assert hub_origin(found) == (E5, "c0ffee")


def test_an_interrupted_download_is_not_taken_for_a_model(tiny_folder: Path, tmp_path: Path) -> None:
    snapshot = fill_cache(tmp_path, E5, tiny_folder)
    (snapshot / "model.safetensors").rename(snapshot / "model-00001-of-00002.safetensors")
    (snapshot / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    )
    with pytest.raises(UnreachableModel, match=r"lacks model-00002-of-00002\.safetensors"):
        base_folder(E5, cache=tmp_path, offline=True)
    (snapshot / "model.safetensors.index.json").unlink()
    (snapshot / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(UnreachableModel, match=r"lacks its \*\.safetensors"):
        base_folder(E5, cache=tmp_path, offline=True)


def test_a_missing_or_gated_repository_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, hub_error(GatedRepoError))
    with pytest.raises(UnreachableModel, match="missing, private or gated") as caught:
        base_folder("embeddinggemma", cache=tmp_path)
    assert one_line_with_the_way_out(str(caught.value), "google/embeddinggemma-300m")
    answer(monkeypatch, hub_error(RevisionNotFoundError))
    with pytest.raises(UnreachableModel, match="got 'v9'"):
        base_folder(E5, revision="v9", cache=tmp_path)


def test_only_what_loads_is_downloaded_and_by_commit(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def snapshot_download(repo_id: str, **settings: object) -> str:
        asked.update(settings, repo_id=repo_id)
        return str(tiny_folder)

    answer(monkeypatch, "abc123")
    monkeypatch.setattr(locate, "snapshot_download", snapshot_download)
    base_folder(E5, cache=tmp_path)
    assert (asked["repo_id"], asked["revision"], asked["local_files_only"]) == (E5, "abc123", False)
    assert "*.safetensors" in asked["allow_patterns"]  # type: ignore[operator]
    assert not any("bin" in pattern or "pt" in pattern for pattern in asked["allow_patterns"])  # type: ignore[attr-defined]


def test_a_download_that_breaks_off_is_an_unreachable_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("gone")

    answer(monkeypatch, "abc123")
    monkeypatch.setattr(locate, "snapshot_download", snapshot_download)
    with pytest.raises(UnreachableModel):
        base_folder(E5, cache=tmp_path)


def test_a_folder_is_taken_as_it_is(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert base_folder(tiny_folder) == tiny_folder
    monkeypatch.chdir(tiny_folder.parent)
    assert base_folder("./tiny-llm") == tiny_folder
    assert hub_origin(tiny_folder) is None


def test_the_built_in_model_is_found_in_the_project(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locate, "PROJECT", tmp_path)
    with pytest.raises(ValueError, match=r"backbone tiny-llm: expected its weights in models/pretrained/tiny-llm"):
        base_folder("tiny-llm")
    shutil.copytree(tiny_folder, tmp_path / "models/pretrained/tiny-llm")
    assert base_folder("tiny-llm") == tmp_path / "models/pretrained/tiny-llm"


def test_the_small_real_encoder_comes_from_its_package() -> None:
    assert (base_folder("all-minilm") / "modules.json").is_file()
    assert base_folder("sentence-transformers/all-MiniLM-L6-v2") == base_folder("all-minilm")


def test_a_model_drawn_from_its_seed_has_no_folder() -> None:
    with pytest.raises(ValueError, match="backbone tiny-encoder: expected a model with stored weights"):
        base_folder("tiny-encoder")


@pytest.mark.parametrize("name", ["./absent", "/absent/too", "~/absent", "../absent"])
def test_an_absent_folder_is_named(name: str) -> None:
    with pytest.raises(ValueError, match="model: expected a folder, found none at") as caught:
        base_folder(name)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["tiny-lm", "a/b/c", "with space/name", ""])
def test_what_is_neither_name_nor_folder_nor_hub_id_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected a name of BACKBONES, a local folder or a hub id"):
        base_folder(name)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected config\.json, modules\.json or adapter_config\.json in"):
        base_folder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"expected weights as \*\.safetensors in"):
        base_folder(tmp_path)
