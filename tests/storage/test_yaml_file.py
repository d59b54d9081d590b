from pathlib import Path

import pytest

from storage.yaml_file import read_yaml


def written(folder: Path, text: str) -> Path:
    (folder / "a.yaml").write_text(text)
    return folder / "a.yaml"


def test_plain_values_and_merge_keys_are_read(tmp_path: Path) -> None:
    text = "base: &b {x: 1, y: [1.5, yes]}\nother:\n  <<: *b\n  x: 2\n"
    assert read_yaml(written(tmp_path, text)) == {
        "base": {"x": 1, "y": [1.5, True]},
        "other": {"x": 2, "y": [1.5, True]},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: expected each key once, got 'a' twice"),
        ("x:\n  a: 1\n  a: 2\n", "line 3: .*'a' twice"),
        ("a: !!python/object/apply:os.system ['true']\n", "line 1: could not determine a constructor"),
        ("a: [1\nb: 2\n", "line 2"),
        ("a: 1\n---\nb: 2\n", "expected one document, got 2"),
        ('a: !!int ""\n', "expected values that fit their tags"),
        ("a: 2001-02-31\n", "expected values that fit their tags"),
        ("a: \x07\n", "expected YAML"),
    ],
)
def test_what_is_not_strict_yaml_is_refused_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_yaml(written(tmp_path, text))
    assert "a.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_not_utf8_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ValueError, match="line 1: expected UTF-8"):
        read_yaml(tmp_path / "a.yaml")
    with pytest.raises(ValueError, match="expected a YAML file, got no such file"):
        read_yaml(tmp_path / "b.yaml")
