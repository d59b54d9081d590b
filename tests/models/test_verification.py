"""A file is what the hub sent, or it is named: changed, cut off, a link to nothing, a pointer."""

import os
import shutil
from pathlib import Path

import pytest

from models import verification
from models.hub import HubModel
from models.locate import base_folder
from models.snapshot import fetch_snapshot
from models.verification import verify_snapshot
from tests.models.fake_hub import FakeHub, fill_cache, use_hub


@pytest.fixture
def hub(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    monkeypatch.setattr(verification, "_verified", set())
    return FakeHub("owner/name", tiny_folder)


def fetched(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with hub:
        use_hub(monkeypatch, hub.url)
        return base_folder("owner/name", cache=cache)


def change(file: Path, content: bytes) -> Path:
    """Write into the blob behind a link; returns it."""
    blob = file.resolve()
    blob.chmod(0o644)
    blob.write_bytes(content)
    return blob


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "1_Pooling/config.json"])
def test_a_changed_file_is_named_with_what_to_delete_and_then_comes_again(
    name: str, hub: FakeHub, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetched(hub, tmp_path, monkeypatch)
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    blob = change(folder / name, bytes(content))
    with pytest.raises(ValueError, match=f"{name}: expected the hub's content .*delete {blob} and fetch it again"):
        base_folder("owner/name", cache=tmp_path, offline=True)
    base_folder("owner/name", cache=tmp_path, offline=True, verify=False)
    blob.unlink()
    assert fetched(FakeHub("owner/name", tiny_folder), tmp_path, monkeypatch) == folder
    assert (folder / name).read_bytes() == (tiny_folder / name).read_bytes()


@pytest.mark.parametrize("cut", [1, 100])
def test_weights_that_are_cut_off_are_named_by_their_size(
    cut: int, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetched(hub, tmp_path, monkeypatch)
    blob = change(folder / "model.safetensors", (folder / "model.safetensors").read_bytes()[:-cut])
    with pytest.raises(ValueError, match=rf"model\.safetensors: expected \d+ bytes by its header.*delete {blob}"):
        verify_snapshot(folder)


def test_a_file_is_hashed_once_while_it_stays_the_same(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetched(hub, tmp_path, monkeypatch)
    hashed: list[Path] = []
    monkeypatch.setattr(verification, "_check_hash", hashed.append)
    verify_snapshot(folder)
    assert hashed == []
    file = folder / "config.json"
    os.utime(file.resolve(), ns=(0, 0))
    verify_snapshot(folder)
    verify_snapshot(folder)
    assert hashed == [file]


def test_pickled_weights_are_hashed_where_there_are_no_others(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    shutil.copyfile(tiny_folder / "config.json", source / "config.json")
    more = {"pytorch_model.bin": b"pickle"}
    with FakeHub("owner/name", source, more=more) as hub:
        use_hub(monkeypatch, hub.url)
        model = HubModel(repo_id="owner/name")
        folder, _ = fetch_snapshot(model, cache=tmp_path, more=["*.bin"])
    verify_snapshot(folder)
    change(folder / "pytorch_model.bin", b"prickle")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: expected the hub's content \(SHA-256"):
        verify_snapshot(folder)
    shutil.copyfile(tiny_folder / "model.safetensors", folder / "model.safetensors")
    verify_snapshot(folder)


def test_a_later_rank_leaves_the_hashes_to_the_first(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetched(hub, tmp_path, monkeypatch)
    change(folder / "config.json", b"{ }")
    monkeypatch.setenv("LOCAL_RANK", "1")
    verify_snapshot(folder)
    monkeypatch.setattr(verification, "_verified", set())
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ValueError, match=r"config\.json: expected the hub's content \(git's SHA-1"):
        verify_snapshot(folder)


def test_a_copy_without_links_is_compared_by_size(tiny_folder: Path, tmp_path: Path) -> None:
    snapshot = fill_cache(tmp_path, "owner/name", tiny_folder)
    file = snapshot / "model.safetensors"
    assert base_folder("owner/name", cache=tmp_path, offline=True) == snapshot
    with file.open("ab") as stream:
        stream.write(b"x")
    for name in ("owner/name", str(snapshot)):
        with pytest.raises(ValueError, match=r"model\.safetensors: expected \d+ bytes by its header"):
            base_folder(name, cache=tmp_path, offline=True)


def test_a_pointer_and_a_link_to_nothing_are_told(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(ValueError, match=r"model\.safetensors: .*run `git lfs pull`"):
        base_folder(folder)
    (folder / "model.safetensors").unlink()
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("../blobs/gone")
    with pytest.raises(ValueError, match=r"tokenizer\.json: expected a file, got a link to nothing"):
        base_folder(folder)
