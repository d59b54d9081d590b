"""The user's own text: what is read, what is refused and with which words, and a split that content alone decides."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.labelled_text import (
    LabelledText,
    check_disjoint,
    check_trainable,
    read_labelled_text,
    split_held_back,
    suite_of,
)


def write(folder: Path, content: str | bytes, name: str = "texts.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows(*pairs: tuple[object, object]) -> str:
    return "".join(json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n" for text, label in pairs)


def labelled(*pairs: tuple[str, str]) -> LabelledText:
    names = tuple(sorted({label for _, label in pairs}))
    return LabelledText(
        source="made up",
        texts=tuple(text for text, _ in pairs),
        labels=tuple(names.index(label) for _, label in pairs),
        names=names,
    )


def test_jsonl_is_read_with_labels_as_sorted_names(tmp_path: Path) -> None:
    found = read_labelled_text(write(tmp_path, rows(("one", "b"), ("two", "a"), ("three", "b"))))
    assert found.texts == ("one", "two", "three")
    assert (found.names, found.labels, found.repeated) == (("a", "b"), (1, 0, 1), 0)
    assert found.source.endswith("texts.jsonl")


def test_csv_is_read_whatever_the_order_and_number_of_columns(tmp_path: Path) -> None:
    found = read_labelled_text(write(tmp_path, "label,id,text\nb,1,one\na,2,two\n", "t.csv"))
    assert (found.texts, found.names, found.labels) == (("one", "two"), ("a", "b"), (1, 0))


def test_csv_quotes_may_hold_commas_quotes_and_new_lines(tmp_path: Path) -> None:
    found = read_labelled_text(write(tmp_path, 'text,label\n"2, 4, 6",a\n"says ""no""",a\n"two\nlines",b\n', "t.csv"))
    assert found.texts == ("2, 4, 6", 'says "no"', "two\nlines")


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_the_text(tmp_path: Path, name: str) -> None:
    plain = "text,label\none,a\ntwo,b\n" if name == "t.csv" else rows(("one", "a"), ("two", "b"))
    content = b"\xef\xbb\xbf" + plain.replace("\n", "\r\n").encode()
    found = read_labelled_text(write(tmp_path, content, name))
    assert (found.texts, found.names) == (("one", "two"), ("a", "b"))


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\u0085", "\x0b"])
def test_a_separator_of_unicode_does_not_end_a_line_of_json(tmp_path: Path, character: str) -> None:
    quoted = json.dumps(f"a{character}b", ensure_ascii=False)
    found = read_labelled_text(write(tmp_path, f'{{"text": {quoted}, "label": "x"}}\n' + rows(("c", "y"))))
    assert found.texts == (f"a{character}b", "c")


def test_blank_lines_and_a_missing_last_line_end_are_no_rows(tmp_path: Path) -> None:
    found = read_labelled_text(write(tmp_path, "\n" + rows(("one", "a")) + "\n  \n" + rows(("two", "b")).rstrip()))
    assert found.texts == ("one", "two")


def test_whole_numbers_may_be_labels(tmp_path: Path) -> None:
    found = read_labelled_text(write(tmp_path, rows(("one", 3), ("two", 10), ("three", "3"))))
    assert (found.names, found.labels) == (("10", "3"), (1, 0, 1))


def test_repeated_rows_are_dropped_and_counted(tmp_path: Path) -> None:
    found = read_labelled_text(write(tmp_path, rows(("one", "a"), ("two", "b"), ("one", "a"), ("one", "a"))))
    assert (found.texts, found.repeated) == (("one", "two"), 2)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", "", "expected rows of labelled text, got an empty file"),
        ("t.jsonl", "\n\n", "expected rows of labelled text, got an empty file"),
        ("t.csv", "", "expected rows of labelled text, got an empty file"),
        ("t.csv", "text,label\n", "expected rows of labelled text, got an empty file"),
        ("t.txt", "x", "expected a .jsonl or .csv file with the columns text,label; got the suffix '.txt'"),
        ("t", "x", "got the suffix ''"),
        ("t.jsonl", b'{"text": "a", "label": "x"}\n{"text": "\xff"}', ":2: expected UTF-8, got the byte 0xff"),
        ("t.csv", b"text,label\na,b\nc\xe9,d\n", ":3: expected UTF-8, got the byte 0xe9"),
        ("t.csv", "text,topic\na,b\n", ":1: expected the columns text,label, got text,topic; missing: label"),
        ("t.csv", "a,b\n1,2\n", "missing: text, label"),
        ("t.csv", "text,text,label\n1,2,3\n", ":1: expected each column once, got text twice"),
        (
            "t.jsonl",
            rows(("a", "x")) + '{"text": "b"}\n',
            ":2: expected the columns text,label, got text; missing: label",
        ),
        ("t.jsonl", '{"txt": "b", "label": "x"}', ":1: .* got txt,label; missing: text"),
        ("t.jsonl", rows(("a", "x"), ("b", "x"), ("a", "y")), ":3: this text has the label 'y' here and 'x' on line 1"),
        ("t.csv", "text,label\na,x\na,y\n", ":3: this text has the label 'y' here and 'x' on line 2"),
        ("t.jsonl", rows(("a", "x"), ("  ", "x")), ":2: expected a non-empty text, got '  '"),
        ("t.jsonl", rows(("a", "")), ":1: expected a non-empty label, got ''"),
        ("t.jsonl", rows((7, "x")), ":1: expected a non-empty text, got 7"),
        ("t.jsonl", rows(("a", None)), ":1: expected a non-empty label, got None"),
        ("t.jsonl", rows(("a", True)), ":1: expected a non-empty label, got True"),
        ("t.jsonl", rows(("a", 1.5)), ":1: expected a non-empty label, got 1.5"),
        ("t.csv", "text,label\na\n", ":2: expected a non-empty label, got None"),
        (
            "t.csv",
            "text,label\n2, 4, 6,even\n",
            ":2: expected 2 cells, got 2 more; put texts that hold a comma in double quotes",
        ),
        ("t.csv", 'text,label\n"a"b,x\n', r":2: expected CSV, got .*expected after"),
        ("t.csv", 'text,label\na,x\n"open,x\n', ":3: expected CSV, got unexpected end of data"),
        (
            "t.jsonl",
            rows(("a", "x")) + '{"text": "b", "label" "x"}\n',
            ":2: expected one JSON object a line, .* at column 23",
        ),
        ("t.jsonl", "[]\n", ":1: expected a JSON object with text and label, got list"),
        ("t.jsonl", '"a"\n', ":1: expected a JSON object with text and label, got str"),
        ("t.jsonl", '{"text": "a", "text": "b", "label": "x"}', ":1: .*the same key twice"),
        ("t.jsonl", '{"text": "\\ud800", "label": "x"}', ":1: expected Unicode, got half a surrogate pair in the text"),
    ],
)
def test_bad_files_are_refused_with_file_and_line(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_labelled_text(write(tmp_path, content, name))
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for name in ("absent.csv", "folder.jsonl"):
        if name.startswith("folder"):
            (tmp_path / name).mkdir()
        with pytest.raises(ValueError, match=f"{name}: expected a file of labelled text, found none"):
            read_labelled_text(tmp_path / name)


def test_one_label_cannot_be_trained_on() -> None:
    with pytest.raises(ValueError, match="expected at least 2 labels, got only 'x'"):
        check_trainable(labelled(("a", "x"), ("b", "x")))


def test_labels_with_a_single_text_are_named() -> None:
    with pytest.raises(ValueError, match="expected at least 2 texts a label, got 1 for 'y'; "):
        check_trainable(labelled(("a", "x"), ("b", "x"), ("c", "y")))
    many = labelled(*((f"t{i}", f"l{i}") for i in range(9)))
    with pytest.raises(ValueError, match="got 1 for 'l0', 'l1', 'l2', 'l3', 'l4' and 4 more"):
        check_trainable(many)
    check_trainable(labelled(("a", "x"), ("b", "x"), ("c", "y"), ("d", "y")))


def test_a_text_on_both_sides_is_refused_and_shown() -> None:
    with pytest.raises(ValueError, match="here and there: expected different texts .*, got 2 in both, first 'b'"):
        check_disjoint(["a", "b", "c"], ["d", "b", "c"], names=("here", "there"))
    check_disjoint(["a"], ["b"], names=("here", "there"))


pairs_of_text = st.dictionaries(st.text(min_size=1), st.sampled_from("xyz"), min_size=1, max_size=60).map(
    lambda found: list(found.items())
)


@given(pairs_of_text, st.randoms(use_true_random=False), st.booleans())
def test_the_split_depends_on_content_and_not_on_order(
    pairs: list[tuple[str, str]], shuffle: random.Random, report: bool
) -> None:
    moved = pairs.copy()
    shuffle.shuffle(moved)
    for part, other in zip(
        split_held_back(labelled(*pairs), report=report), split_held_back(labelled(*moved), report=report), strict=True
    ):
        assert set(zip(part.texts, part.labels, strict=True)) == set(zip(other.texts, other.labels, strict=True))


@given(pairs_of_text, st.booleans())
def test_the_parts_are_disjoint_and_together_everything(pairs: list[tuple[str, str]], report: bool) -> None:
    data = labelled(*pairs)
    parts = split_held_back(data, report=report)
    together = [pair for part in parts for pair in zip(part.texts, part.labels, strict=True)]
    assert sorted(together) == sorted(zip(data.texts, data.labels, strict=True))
    assert all(part.names == data.names for part in parts)
    assert report or not parts[2].texts


@given(pairs_of_text)
def test_each_part_takes_a_fifth_of_every_label_that_has_six(pairs: list[tuple[str, str]]) -> None:
    data = labelled(*pairs)
    counts = Counter(data.labels)
    _, selection, reported = split_held_back(data)
    spare = sum(count > 5 for count in counts.values()) >= 2
    for label, count in counts.items():
        held = [part.labels.count(label) for part in (selection, reported)]
        assert held == ([(count + 3) // 5, (count + 2) // 5] if spare and count > 5 else [0, 0])


def test_nothing_is_held_back_when_only_one_label_could_spare_texts() -> None:
    data = labelled(*((f"x{i}", "x") for i in range(30)), ("y0", "y"), ("y1", "y"))
    training, selection, reported = split_held_back(data)
    assert (training.texts, selection.texts, reported.texts) == (data.texts, (), ())


def test_texts_become_a_suite_with_length_as_the_only_nuisance() -> None:
    suite = suite_of(labelled(("a", "x"), ("bbb", "y"), ("cc", "x")), "mine")
    assert (suite.name, suite.families, suite.labels) == ("mine", ("x", "y"), (0, 1, 0))
    assert dict(suite.nuisances) == {"length": (1.0, 3.0, 2.0)}
    assert len(set(suite.blocks)) == 3
