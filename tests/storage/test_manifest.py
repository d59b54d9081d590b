import hashlib
from pathlib import Path

import pytest

from storage.hashing import sha256_of
from storage.json_file import read_json, write_json
from storage.manifest import fingerprint, verify_manifest, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.safetensors").write_bytes(b"weights")
    (tmp_path / "inner" / "b.txt").write_bytes(b"text")
    write_manifest(tmp_path, kind="stage", base={"fingerprint": "f"})
    return tmp_path


def test_it_lists_every_file_with_its_hash(folder: Path) -> None:
    manifest = verify_manifest(folder)
    assert manifest == read_json(folder / "manifest.json")
    assert manifest["kind"] == "stage"
    assert manifest["base"] == {"fingerprint": "f"}
    assert set(manifest["files"]) == {"a.safetensors", "inner/b.txt"}
    assert manifest["files"]["inner/b.txt"] == {"sha256": hashlib.sha256(b"text").hexdigest(), "bytes": 4}


def test_a_missing_a_changed_and_an_unlisted_file_are_named(folder: Path) -> None:
    (folder / "inner" / "b.txt").write_bytes(b"txet")
    with pytest.raises(ValueError, match=r"inner/b\.txt.*content"):
        verify_manifest(folder)
    (folder / "inner" / "b.txt").unlink()
    with pytest.raises(ValueError, match=r"inner/b\.txt.*got none"):
        verify_manifest(folder)
    (folder / "inner" / "b.txt").write_bytes(b"text")
    (folder / "new").write_bytes(b"")
    with pytest.raises(ValueError, match=r"new.*does not list"):
        verify_manifest(folder)
    (folder / "new").unlink()
    (folder / ".hidden").write_bytes(b"")
    verify_manifest(folder)


def test_no_manifest_and_a_manifest_without_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"manifest\.json.*no such file"):
        verify_manifest(tmp_path)
    write_json(tmp_path / "manifest.json", [])
    with pytest.raises(ValueError, match="'files'"):
        verify_manifest(tmp_path)


def test_sha256_of_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\0" * 3_000_000)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"\0" * 3_000_000).hexdigest()


def test_the_fingerprint_follows_names_and_weights_only(folder: Path) -> None:
    before = fingerprint(folder)
    (folder / "inner" / "b.txt").write_bytes(b"other")
    assert fingerprint(folder) == before
    (folder / "a.safetensors").rename(folder / "c.safetensors")
    renamed = fingerprint(folder)
    (folder / "c.safetensors").write_bytes(b"Weights")
    assert len({before, renamed, fingerprint(folder)}) == 3


def test_a_folder_without_weights_has_no_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="safetensors"):
        fingerprint(tmp_path)
