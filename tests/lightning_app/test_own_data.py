"""Labelled text or pairs of one's own: what becomes of them, and what is refused before anything is loaded."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from data.suites import paper_suite
from lightning_app.config import LoraConfig, StageConfig, TrainConfig
from lightning_app.stages import read_run_data


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pairs(count: int = 30, **more: Any) -> list[dict[str, Any]]:
    return [{"anchor": f"question {i}", "positive": f"answer {i}"} | more for i in range(count)]


def labels(count: int = 12) -> list[dict[str, Any]]:
    return [{"text": f"text {i} of {label}", "label": label} for label in ("left", "right", "up") for i in range(count)]


def one(**settings: Any) -> tuple[StageConfig, ...]:
    return (StageConfig(name="own", **settings),)


def test_pairs_train_whole_and_hold_two_parts_back(tmp_path: Path) -> None:
    rows = [row | {"negative": [f"no {i}", f"nor {i}"]} for i, row in enumerate(pairs(60))]
    run = read_run_data(TrainConfig(data=write(tmp_path / "p.jsonl", rows), objective="infonce"))
    (stage,) = run.stages
    assert (stage.classes, stage.per_class, stage.name) == (24, 4, "1-data")
    assert len(stage.data.texts) == 4 * 36
    assert Counter(stage.data.roles or ()) == dict.fromkeys(range(4), 36)
    parts = [run.selection, run.reported]
    seen = [set(stage.data.texts)]
    for part in parts:
        assert part is not None
        assert set(Counter(part.labels).values()) == {2}
        assert len(part.families) == 12
        assert not any(set(part.texts) & each for each in seen)
        seen.append(set(part.texts))


def test_pairs_are_labels_of_two_to_the_supervised_loss(tmp_path: Path) -> None:
    (stage,) = read_run_data(TrainConfig(data=write(tmp_path / "p.jsonl", pairs(60)))).stages
    assert (stage.classes, stage.per_class, stage.data.roles) == (24, 2, None)
    assert set(Counter(stage.data.labels).values()) == {2}
    rows = [*pairs(6), {"anchor": "question 0", "positive": "another answer"}]
    (stage,) = read_run_data(TrainConfig(data=write(tmp_path / "q.jsonl", rows))).stages
    assert sorted(Counter(stage.data.labels).values()) == [2, 2, 2, 2, 2, 3]


def test_labels_give_pairs_of_two_texts(tmp_path: Path) -> None:
    (stage,) = read_run_data(TrainConfig(data=write(tmp_path / "l.jsonl", labels()), objective="infonce")).stages
    assert (stage.classes, stage.per_class, stage.data.roles) == (3, 2, None)
    broad, six = read_run_data(TrainConfig(objective="infonce")).stages
    assert (broad.classes, broad.per_class, six.classes, six.per_class) == (24, 2, 6, 2)


def test_pairs_to_report_on_may_be_given_and_labels_too(tmp_path: Path) -> None:
    data = write(tmp_path / "p.jsonl", pairs())
    others = [{"anchor": f"other {i}", "positive": f"reply {i}", "negative": "x"} for i in range(3)]
    for given, texts in ((others, 6), (labels(2), 6)):
        run = read_run_data(TrainConfig(data=data, eval_data=write(tmp_path / "e.jsonl", given), objective="infonce"))
        assert run.reported is not None
        assert (len(run.reported.texts), run.reported.name) == (texts, "data")
        assert len(run.stages[0].data.texts) == 2 * 24


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (
            pairs(3, negative="x"),
            {},
            r"--objective supcon: expected pairs without negatives, .* with 1 a pair; use --objective",
        ),
        (pairs(1), {"objective": "infonce"}, "at least 2 pairs without a common text, got 1 in one group"),
        (
            pairs(3) + labels(2),
            {"objective": "infonce"},
            "p.jsonl:4: expected the columns anchor,positive, got text,label; missing: anchor",
        ),
        (pairs(3, label="a", text="b"), {}, "expected the columns text,label or the columns anchor,positive"),
        (
            pairs(3, negative="x"),
            {"objective": "infonce", "stages": one(texts_per_class=2)},
            r"--stages\.0\.texts-per-class: expected 3 with --objective infonce \(the texts of a pair of the data\), got 2",
        ),
        (
            labels(),
            {"objective": "infonce", "stages": one(texts_per_class=4)},
            r"--stages\.0\.texts-per-class: expected 2 with --objective infonce \(which takes two .*\), got 4; leave it out",
        ),
        (
            pairs(6),
            {"objective": "infonce", "stages": one(classes=7)},
            r"--stages\.0\.classes: expected 2 to 6 \(the pairs of the stage\), got 7",
        ),
        (
            pairs(6),
            {"stages": one(texts_per_class=3)},
            r"--stages\.0\.texts-per-class: expected 2 to 2 \(the texts of its smallest label\), got 3",
        ),
        (
            pairs(6),
            {"objective": "infonce", "devices": 16},
            "--devices 16: expected a divisor of the batch of stage data, got 6 x 2 = 12 texts; set --stages.0.classes$",
        ),
        (
            pairs(6),
            {"objective": "infonce", "devices": 4, "num_nodes": 6},
            "--devices 4 --num-nodes 6: expected a divisor of the batch of stage data, got 6 x 2 = 12 texts",
        ),
        (pairs(6), {"num_nodes": 0}, "--num-nodes: expected at least 1, got 0"),
        (
            [*pairs(3), {"anchor": "new", "positive": paper_suite().texts[0]}],
            {"objective": "infonce"},
            "the built-in suites: expected different texts for training and evaluation, got 1 in both",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_refused_in_one_line(
    tmp_path: Path, rows: Sequence[dict[str, Any]], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        read_run_data(TrainConfig(data=write(tmp_path / "p.jsonl", rows), **settings))
    assert "\n" not in str(raised.value)


def test_a_negative_of_training_may_not_be_reported(tmp_path: Path) -> None:
    data = write(tmp_path / "p.jsonl", pairs(4, negative="other 0"))
    held = write(tmp_path / "e.jsonl", [{"anchor": f"other {i}", "positive": f"reply {i}"} for i in range(3)])
    with pytest.raises(ValueError, match=r"--data .*--eval-data .* got 1 in both, first 'other 0'"):
        read_run_data(TrainConfig(data=data, eval_data=held, objective="infonce"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"matryoshka": (64, 32)}, "--matryoshka: expected ascending numbers above 0, got 64 32"),
        ({"matryoshka": (0,)}, "--matryoshka: expected ascending numbers above 0, got 0"),
        ({"geometry_weight": -1.0}, r"--geometry-weight: expected 0 or a positive number, got -1\.0"),
        ({"geometry_weight": float("nan")}, "--geometry-weight: expected 0 or a positive number, got nan"),
        (
            {"geometry_weight": 1.0, "lora": LoraConfig(dense="train")},
            "--geometry-weight 1.0: expected --lora.dense freeze",
        ),
        ({"temperature": 0.0}, r"--temperature: expected a positive number, got 0\.0"),
    ],
)
def test_settings_of_the_objective_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_run_data(TrainConfig(**settings))
