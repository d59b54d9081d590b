"""Half of a snapshot is no model: what is missing is named, and fetched where there is a hub."""

import shutil
from pathlib import Path

import pytest

from models.hub import HubModel, UnreachableModel
from models.snapshot import cached_snapshot, fetch_snapshot, interrupted, missing_file, repository_folder
from tests.models.fake_hub import CLOSED, FakeHub, fill_cache, use_hub

COMMIT = "1" * 40
PINNED = HubModel(repo_id="owner/name", revision=COMMIT, pinned=True)


def test_a_file_of_the_listing_that_is_missing_is_named_and_fetched_again(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeHub("owner/name", tiny_folder, commit=COMMIT) as hub:
        use_hub(monkeypatch, hub.url)
        folder, silence = fetch_snapshot(PINNED, cache=tmp_path)
        assert (silence, folder) == (None, tmp_path / "models--owner--name" / "snapshots" / COMMIT)
        whole = (folder / "tokenizer.json").read_bytes()
        (folder / "tokenizer.json").unlink()
        with pytest.raises(UnreachableModel, match=r"lacks tokenizer\.json"):
            fetch_snapshot(PINNED, cache=tmp_path, offline=True)
        asked = len(hub.asked)
        assert fetch_snapshot(PINNED, cache=tmp_path) == (folder, None)
        assert len(hub.asked) > asked
    assert (folder / "tokenizer.json").read_bytes() == whole


def test_code_is_fetched_only_when_it_is_asked_for(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeHub("owner/name", tiny_folder, commit=COMMIT, more={"modeling.py": b"x = 1"}) as hub:
        use_hub(monkeypatch, hub.url)
        folder, _ = fetch_snapshot(PINNED, cache=tmp_path)
        assert not (folder / "modeling.py").exists()
        with pytest.raises(UnreachableModel, match=r"lacks modeling\.py"):
            fetch_snapshot(PINNED, cache=tmp_path, offline=True, more=["*.py"])
        fetch_snapshot(PINNED, cache=tmp_path, more=["*.py"])
        assert (folder / "modeling.py").read_bytes() == b"x = 1"


def test_a_download_that_breaks_off_is_an_unreachable_model(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeHub("owner/name", tiny_folder, commit=COMMIT, files_refused=(400, "")) as hub:
        use_hub(monkeypatch, hub.url)
        with pytest.raises(
            UnreachableModel, match="its download broke off .*the same command goes on with it"
        ) as caught:
            fetch_snapshot(PINNED, cache=tmp_path)
    assert "\n" not in str(caught.value)


def test_the_reason_of_a_fallback_is_told(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = fill_cache(tmp_path, "owner/name", tiny_folder)
    use_hub(monkeypatch, CLOSED)
    found, silence = fetch_snapshot(PINNED, cache=tmp_path)
    assert found == snapshot
    assert silence is not None
    assert silence.startswith("the hub cannot be reached (ConnectError")
    assert fetch_snapshot(PINNED, cache=tmp_path, offline=True) == (snapshot, "the hub is not asked (offline)")


def test_of_several_commits_without_a_branch_none_is_guessed(tiny_folder: Path, tmp_path: Path) -> None:
    snapshot = fill_cache(tmp_path, "owner/name", tiny_folder)
    (snapshot.parents[1] / "refs" / "main").unlink()
    assert cached_snapshot(HubModel(repo_id="owner/name"), cache=tmp_path) == snapshot
    shutil.copytree(snapshot, snapshot.parent / "decade")
    with pytest.raises(UnreachableModel, match="it is not in the cache"):
        cached_snapshot(HubModel(repo_id="owner/name"), cache=tmp_path)
    assert cached_snapshot(HubModel(repo_id="owner/name", revision="decade"), cache=tmp_path).name == "decade"


def test_what_a_folder_lacks(tmp_path: Path) -> None:
    assert missing_file(tmp_path) == "config.json"
    (tmp_path / "config.json").write_text("{}")
    assert missing_file(tmp_path) == "its *.safetensors"
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "gone")
    assert missing_file(tmp_path) == "its *.safetensors"
    (tmp_path / "gone").touch()
    assert missing_file(tmp_path) is None


def test_the_beginning_of_a_file_is_named(tmp_path: Path) -> None:
    repository = repository_folder("owner/name", tmp_path)
    assert interrupted(repository) == ""
    (repository / "blobs").mkdir(parents=True)
    (repository / "blobs" / "ab.incomplete").touch()
    assert interrupted(repository) == " (its download was interrupted: ab.incomplete)"
