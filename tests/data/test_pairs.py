"""Files of pairs: what is read, what is refused, and what is held back."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.pairs import Pair, Pairs, as_labelled, check_pairs, is_pair_file, pair_rows, read_pairs, split_pairs
from data.sampler import LabelBatchSampler


def jsonl(folder: Path, *rows: Any) -> Path:
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def csv(folder: Path, text: str) -> Path:
    file = folder / "pairs.csv"
    file.write_text(text)
    return file


def row(i: int, **more: Any) -> dict[str, Any]:
    return {"anchor": f"question {i}", "positive": f"answer {i}", **more}


def made(folder: Path, count: int, *, negatives: int = 0) -> Pairs:
    extra = [
        {"negative": [f"negative {k} of {i}" for k in range(negatives)]} if negatives else {} for i in range(count)
    ]
    return read_pairs(jsonl(folder, *(row(i, **extra[i]) for i in range(count))))


def test_every_form_of_negatives_reads_alike(tmp_path: Path) -> None:
    expected = (Pair("a", "b", ("c", "d")), Pair("e", "f", ("g", "h")))
    listed = jsonl(
        tmp_path,
        {"anchor": "a", "positive": "b", "negative": ["c", "d"], "id": 7},
        {"negative": ["g", "h"], "anchor": "e", "positive": "f"},
    )
    assert read_pairs(listed).pairs == expected
    numbered = [
        {"negative_10": "d", "anchor": "a", "positive": "b", "negative_2": "c"},
        {"anchor": "e", "positive": "f", "negative_2": "g", "negative_10": "h"},
    ]
    assert read_pairs(jsonl(tmp_path, *numbered)).pairs == expected
    assert read_pairs(csv(tmp_path, "negative_1,anchor,positive,negative_2\nc,a,b,d\ng,e,f,h\n")).pairs == expected
    single = read_pairs(csv(tmp_path, "anchor,positive,negative\na,b,c\ne,f,g\n"))
    assert (single.pairs[0].negatives, single.rows_a_pair, single.texts) == (("c",), 3, tuple("abcefg"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(0), row(1, positive=" ")], "2: expected a non-empty positive, got ' '"),
        ([row(0), {"anchor": "a"}], "2: expected the columns anchor,positive, got anchor; missing: positive"),
        ([row(0, anchor=3)], "1: expected a non-empty anchor, got 3"),
        ([row(0, negative=["x", ""])], "1: expected a non-empty negative, got ''"),
        ([row(0, negative=None)], "1: expected a non-empty negative, got None"),
        ([row(0, negative=[["x"]])], r"1: expected a non-empty negative, got \['x'\]"),
        ([row(0, negative_1="x", negative="y")], "1: expected a column negative or columns negative_1, .*got both"),
        ([row(0), row(1, positive="question 1")], "2: expected a positive that differs .*got 'question 1' for both"),
        ([row(0, negative="answer 0")], "1: expected negatives that differ from anchor, positive and each other"),
        ([row(0, negative=["x", "x"])], "1: expected negatives that differ"),
        ([row(0), row(1), row(0)], "3: expected every pair once, got that of line 1 again"),
        ([row(0, negative=["x", "y"]), row(1, negative="z")], "2: expected 2 negatives as in the rows before, got 1"),
        ([row(0), row(1, negative="z")], "2: expected 0 negatives as in the rows before, got 1"),
        ([], ": expected rows of pairs, got an empty file"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, rows: Sequence[Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"pairs.jsonl:? ?{message}") as raised:
        read_pairs(jsonl(tmp_path, *rows))
    assert "\n" not in str(raised.value)


def test_a_csv_needs_both_columns_and_full_cells(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r":1: expected the columns anchor,positive, got anchor,other; missing: positive"
    ):
        read_pairs(csv(tmp_path, "anchor,other\na,b\n"))
    with pytest.raises(ValueError, match=r":2: expected a non-empty negative_2, got ''"):
        read_pairs(csv(tmp_path, "anchor,positive,negative_1,negative_2\na,b,c,\n"))


def test_the_columns_tell_pairs_from_labels(tmp_path: Path) -> None:
    assert is_pair_file(jsonl(tmp_path, row(0)))
    assert is_pair_file(csv(tmp_path, "anchor,positive\n"))
    assert not is_pair_file(csv(tmp_path, "text,label,note\n"))
    assert not is_pair_file(jsonl(tmp_path))
    for both in ("text,label,anchor,positive", "anchor,text"):
        with pytest.raises(
            ValueError, match=f"expected the columns text,label or .*anchor,positive, got {both}; keep one"
        ):
            is_pair_file(csv(tmp_path, f"{both}\n"))


def test_pairs_of_one_group_are_refused(tmp_path: Path) -> None:
    chained = [{"anchor": "a", "positive": "b"}, {"anchor": "c", "positive": "b"}, {"anchor": "c", "positive": "d"}]
    found = read_pairs(jsonl(tmp_path, *chained))
    assert found.groups == (0, 0, 0)
    with pytest.raises(ValueError, match="at least 2 pairs without a common text, got 3 in one group"):
        check_pairs(found)
    check_pairs(read_pairs(jsonl(tmp_path, *chained, row(0))))


def test_rows_and_batches_hold_whole_pairs(tmp_path: Path) -> None:
    data = pair_rows(made(tmp_path, 5, negatives=2))
    assert data.in_pairs
    items = data.items()
    assert [item.role for item in items] == [0, 1, 2, 3] * 5
    assert (items[6].text, items[6].label, items[6].place) == ("negative 0 of 1", 1, 6)
    whole = LabelBatchSampler(data.labels, classes=3, per_class=4, batches=4, blocks=data.blocks)
    halves = [
        LabelBatchSampler(data.labels, classes=3, per_class=4, batches=4, blocks=data.blocks, rank=rank, world_size=2)
        for rank in (0, 1)
    ]
    for batch, *shares in zip(whole, *halves, strict=True):
        assert set(Counter(items[i].label for i in batch).values()) == {4}
        assert all(len(share) == 6 for share in shares)
        assert sorted(i for share in shares for i in share) == sorted(batch)


def test_the_place_of_a_repeated_text_is_its_first(tmp_path: Path) -> None:
    rows = [{"anchor": "a", "positive": "b"}, {"anchor": "a", "positive": "c"}, {"anchor": "d", "positive": "e"}]
    assert [item.place for item in pair_rows(read_pairs(jsonl(tmp_path, *rows))).items()] == [0, 1, 0, 3, 4, 5]


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).filter(lambda p: p[0] != p[1]), min_size=2, unique=True),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=60)
def test_no_text_is_in_two_parts(rows: list[tuple[int, int]], mined: bool, report: bool) -> None:
    pairs = [
        Pair(f"t{a}", f"t{b}", (f"t{next(k for k in range(a, a + 3) if k not in (a, b))}",) if mined else ())
        for a, b in rows
    ]
    from data.pairs import _groups

    data = Pairs(source="pairs.jsonl", pairs=tuple(pairs), groups=_groups(pairs))
    training, selection, reported = split_pairs(data, report=report)
    texts = [set(training.texts), *({t for p in part.pairs for t in p[:2]} for part in (selection, reported))]
    assert not any(texts[i] & texts[j] for i in range(3) for j in range(i))
    assert 2 * len(training.pairs) >= len(pairs)
    assert report or not reported.pairs
    turned = Pairs(source="pairs.jsonl", pairs=tuple(pairs[::-1]), groups=_groups(pairs[::-1]))
    for part, other in zip((training, selection, reported), split_pairs(turned, report=report), strict=True):
        assert set(part.pairs) == set(other.pairs)
    for part in (selection, reported):
        labelled = as_labelled(part)
        label = dict(zip(labelled.texts, labelled.labels, strict=True))
        assert len(label) == len(labelled.texts)
        assert all(label[pair.anchor] == label[pair.positive] for pair in part.pairs)


def test_a_fifth_is_held_back_for_each_part_and_never_more_than_a_hundred_groups(tmp_path: Path) -> None:
    assert [len(part.pairs) for part in split_pairs(made(tmp_path, 30))] == [18, 6, 6]
    assert [len(part.pairs) for part in split_pairs(made(tmp_path, 30), report=False)] == [24, 6, 0]
    assert [len(part.pairs) for part in split_pairs(made(tmp_path, 6))] == [6, 0, 0]
    assert [len(part.pairs) for part in split_pairs(made(tmp_path, 1200))] == [1000, 100, 100]


def test_mined_negatives_that_would_leave_too_little_hold_nothing_back(tmp_path: Path) -> None:
    rows = [row(i, negative=[f"answer {(i + k) % 20}" for k in (1, 2, 3)]) for i in range(20)]
    data = read_pairs(jsonl(tmp_path, *rows))
    assert [len(part.pairs) for part in split_pairs(data)] == [20, 0, 0]
