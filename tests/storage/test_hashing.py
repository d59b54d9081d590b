import subprocess
from pathlib import Path

import pytest

from storage.hashing import git_blob_sha1_of


@pytest.mark.parametrize("content", [b"", b"{}\n", bytes(range(256)) * 5])
def test_the_name_of_a_blob_is_that_of_git(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    done = subprocess.run(["git", "hash-object", str(file)], capture_output=True, text=True, check=True)
    assert git_blob_sha1_of(file) == done.stdout.strip()
