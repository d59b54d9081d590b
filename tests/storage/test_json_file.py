import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.json_file import parse_json, read_json, write_json

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**15), 10**15)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_strict_parsing_agrees_with_the_standard_library(value: object) -> None:
    assert parse_json(json.dumps(value), "x") == value


def test_written_values_are_read_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"é": [1, 2.5, None, True, {"b": "c"}]})
    assert read_json(tmp_path / "a.json") == {"é": [1, 2.5, None, True, {"b": "c"}]}
    assert "\n  " in (tmp_path / "a.json").read_text()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused_with_its_key_path(tmp_path: Path, bad: float) -> None:
    with pytest.raises(ValueError, match=r"a\.json.*rows\[1\]\.silhouette"):
        write_json(tmp_path / "a.json", {"rows": [{}, {"silhouette": bad}]})
    assert list(tmp_path.iterdir()) == []


def test_keys_must_be_strings(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="string keys, got 1 at outer"):
        write_json(tmp_path / "a.json", {"outer": {1: 2}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,\n "b": 2,\n "a": 3}', r"lines 1, 3.*'a' twice"),
        ('{"x": 0,\n"a": {"b": 1, "b": 2}}', r"line 2.*'b' twice"),
        ('{"a":\n NaN}', "line 2.*finite"),
        ("[1,\n-Infinity]", "line 2.*finite"),
        ("[1e999]", "line 1.*finite"),
        ('{"a": 1,\n}', "line 2: expected JSON"),
        ("", "line 1: expected JSON"),
        ("[1] [2]", "line 1: expected JSON"),
        ("[" * 100_000, "modest depth"),
    ],
)
def test_what_is_not_strict_json_is_refused_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_json(tmp_path / "a.json")
    assert "a.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_not_utf8_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{\n"a": "\xff"}')
    with pytest.raises(ValueError, match=r"a\.json, line 2: expected UTF-8, got byte 0xff"):
        read_json(tmp_path / "a.json")
    with pytest.raises(ValueError, match="no such file"):
        read_json(tmp_path / "b.json")
    with pytest.raises(ValueError, match="got a folder"):
        read_json(tmp_path)
