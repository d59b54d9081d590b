import pytest

from models.backbones import lookup_backbone
from models.revision import is_path, split_revision


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/name@v1.0", ("owner/name", "v1.0")),
        ("owner/name@refs/pr/3", ("owner/name", "refs/pr/3")),
        ("e5-mistral@0123abc", ("e5-mistral", "0123abc")),
        ("E5-Mistral-7B@main", ("E5-Mistral-7B", "main")),
        ("owner/name", ("owner/name", None)),
        ("owner/name@", ("owner/name@", None)),
        ("owner/name@a b", ("owner/name@a b", None)),
        ("no-row@main", ("no-row@main", None)),
        ("./owner/name@v1", ("./owner/name@v1", None)),
        ("/a/b@c", ("/a/b@c", None)),
        ("a/b/c@d", ("a/b/c@d", None)),
        ("@v1", ("@v1", None)),
    ],
)
def test_what_stands_behind_an_at_sign_is_a_revision(name: str, expected: tuple[str, str | None]) -> None:
    assert split_revision(name) == expected


def test_a_revision_beside_the_name_is_kept_and_must_be_the_same() -> None:
    assert split_revision("owner/name", "v1") == split_revision("owner/name@v1", "v1") == ("owner/name", "v1")
    assert split_revision("./folder", "v1") == ("./folder", "v1")
    with pytest.raises(ValueError, match="model owner/name: expected one revision, got 'v1' and 'v2'"):
        split_revision("owner/name@v1", "v2")


def test_the_row_of_a_name_with_a_revision() -> None:
    assert lookup_backbone("intfloat/e5-mistral-7b-instruct@main") == lookup_backbone("e5-mistral")
    assert lookup_backbone("./e5-mistral@main") is None


def test_a_path_is_told_from_a_name() -> None:
    assert all(map(is_path, ("./a", "../a", "/a", "~/a", ".", "..")))
    assert not any(map(is_path, ("a", "a/b", ".a", "...")))
