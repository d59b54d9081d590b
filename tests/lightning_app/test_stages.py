"""What each stage trains on, and everything about it that can be asked for wrongly."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from data.families import families_of
from data.suites import SUITES
from lightning_app.config import StageConfig, TrainConfig
from lightning_app.stages import read_run_data

TEXTS = [(f"text {i} of {label}", label) for label in ("left", "right", "up") for i in range(12)]


def write(path: Path, pairs: Sequence[tuple[str, str]]) -> str:
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in pairs))
    return str(path)


def stages(*chosen: StageConfig) -> TrainConfig:
    return TrainConfig(stages=chosen)


def one(**settings: object) -> TrainConfig:
    return stages(StageConfig(**({"name": "a", "families": ("six",)} | settings)))  # type: ignore[arg-type]


def test_the_default_stages_are_the_broad_families_then_the_six() -> None:
    broad, six = (run := read_run_data(TrainConfig())).stages
    assert (broad.name, six.name) == ("1-broad", "2-six")
    assert (len(set(broad.data.labels)), len(set(six.data.labels))) == (len(families_of("broad")), 6) == (38, 6)
    assert (broad.classes, broad.per_class, six.classes, six.per_class) == (12, 4, 6, 8)
    assert run.selection is not None
    assert (run.selection.name, run.reported) == ("selection", None)
    reserved = {text for make in SUITES.values() for text in make().texts}
    for stage in run.stages:
        assert not reserved & set(stage.data.texts)
        assert len(stage.data.texts) == len(stage.data.labels) == len(stage.data.blocks)


def test_families_keep_their_order_and_are_taken_once() -> None:
    (found,) = read_run_data(one(families=("odd", "even", "six", "odd"))).stages
    first_of = dict(zip(reversed(found.data.labels), reversed(found.data.blocks), strict=True))
    names = [str(first_of[label]).partition(":")[0] for label in range(6)]
    assert names == ["odd", "even", "consecutive", "primes", "recaman", "composites"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (stages(), "--stages: expected at least one stage, got none"),
        (TrainConfig(seed=-1), r"--seed: expected a number from 0 to 4294967295, got -1"),
        (TrainConfig(seed=2**32), r"--seed: expected a number from 0 to 4294967295, got 4294967296"),
        (TrainConfig(precision="foo"), r"--precision: expected one of 32-true, bf16-mixed, .*, got 'foo'"),
        (one(families=()), r"--stages\.0\.families: expected at least 2 families .*, got 0"),
        (one(families=("primes",)), r"--stages\.0\.families: expected at least 2 families .*, got 1"),
        (one(families=("primes", "primes")), "expected at least 2 families .*, got 1"),
        (one(families=("primes", "evn")), "unknown family 'evn': .*closest: even"),
        (one(families=("primes", "lucky")), r"--stages\.0\.families: .* got 'lucky', which is held out"),
        (
            stages(StageConfig(name="a", families=("six",)), StageConfig(name="b", families=("even",))),
            r"--stages\.1\.families",
        ),
        (stages(*[StageConfig(name="a", families=("six",))] * 2), "--stages: expected different names .*got 'a', 'a'"),
        (one(name="../a"), "--stages: expected different names of letters, .*got '../a'"),
        (one(name=""), "--stages: expected different names of letters"),
        (one(classes=7), r"--stages\.0\.classes: expected 2 to 6 \(the labels of the stage\), got 7"),
        (one(classes=1), r"--stages\.0\.classes: expected 2 to 6 .*, got 1"),
        (one(classes=0), r"--stages\.0\.classes: expected 2 to 6 .*, got 0"),
        (one(texts_per_class=1), r"--stages\.0\.texts-per-class: expected 2 to \d+ .*, got 1"),
        (one(texts_per_class=99_999), r"--stages\.0\.texts-per-class: expected 2 to \d+ .*, got 99999"),
        (one(epochs=0), r"--stages\.0\.epochs: expected at least 1, got 0"),
        (one(steps_per_epoch=0), r"--stages\.0\.steps-per-epoch: expected at least 1, got 0"),
        (one(patience=-1), r"--stages\.0\.patience: expected at least 0, got -1"),
        (one(learning_rate=0.0), r"--stages\.0\.learning-rate: expected a positive number, got 0\.0"),
        (one(learning_rate=float("nan")), r"--stages\.0\.learning-rate: expected a positive number, got nan"),
        (TrainConfig(devices=0), "--devices: expected at least 1, got 0"),
        (TrainConfig(token_budget=0), "--token-budget: expected at least 1 token, got 0"),
        (
            TrainConfig(batching="packed", strategy="fsdp"),
            "--batching packed: expected a model that is whole on every device",
        ),
        (TrainConfig(devices=5), r"--devices 5: expected a divisor of the batch of stage broad, got 12 x 4 = 48 texts"),
        (TrainConfig(eval_data="e.csv"), "--eval-data: expected --data beside it, got none"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(config: TrainConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_run_data(config)
    assert "\n" not in str(error.value)


def test_ones_own_text_is_one_stage_with_two_parts_held_back(tmp_path: Path) -> None:
    run = read_run_data(TrainConfig(data=write(tmp_path / "t.jsonl", TEXTS)))
    (stage,) = run.stages
    assert (stage.name, stage.stage.families) == ("1-data", ())
    assert run.selection is not None
    assert run.reported is not None
    assert (run.selection.name, run.reported.name) == ("selection", "data")
    parts = [set(stage.data.texts), set(run.selection.texts), set(run.reported.texts)]
    assert set.union(*parts) == {text for text, _ in TEXTS}
    assert sum(map(len, parts)) == len(TEXTS)
    assert stage.per_class == min(Counter(stage.data.labels).values())
    assert len(set(stage.data.blocks)) == len(stage.data.texts)


def test_text_to_report_on_may_be_given(tmp_path: Path) -> None:
    data = write(tmp_path / "t.jsonl", TEXTS)
    other = write(tmp_path / "e.jsonl", [(f"other {text}", label) for text, label in TEXTS])
    run = read_run_data(TrainConfig(data=data, eval_data=other))
    assert run.reported is not None
    assert len(run.reported.texts) == len(TEXTS)
    assert run.selection is not None
    assert len(run.stages[0].data.texts) + len(run.selection.texts) == len(TEXTS)


def test_too_little_text_has_no_selection_and_trains_on_all(tmp_path: Path) -> None:
    few = [(text, label) for text, label in TEXTS if text.split()[1] in ("0", "1")]
    run = read_run_data(TrainConfig(data=write(tmp_path / "t.jsonl", few)))
    assert (run.selection, run.reported, len(run.stages[0].data.texts)) == (None, None, 6)


def test_several_stages_over_ones_own_text(tmp_path: Path) -> None:
    data = write(tmp_path / "t.jsonl", TEXTS)
    chosen = (StageConfig(name="warm", learning_rate=1e-4), StageConfig(name="hot", classes=2, texts_per_class=3))
    warm, hot = read_run_data(TrainConfig(data=data, stages=chosen)).stages
    assert (warm.name, hot.name, hot.classes, hot.per_class) == ("1-warm", "2-hot", 2, 3)


def test_families_beside_ones_own_text_are_refused(tmp_path: Path) -> None:
    config = TrainConfig(data=write(tmp_path / "t.jsonl", TEXTS), stages=(StageConfig(name="a", families=("six",)),))
    with pytest.raises(ValueError, match=r"--stages\.0\.families: expected none beside --data, got six"):
        read_run_data(config)


def test_the_same_text_in_both_files_is_refused(tmp_path: Path) -> None:
    data, other = (
        write(tmp_path / "t.jsonl", TEXTS),
        write(tmp_path / "e.jsonl", [*TEXTS[:3], ("new", "left"), TEXTS[-1], TEXTS[-2]]),
    )
    with pytest.raises(
        ValueError, match=r"--data .*t\.jsonl and --eval-data .*e\.jsonl: expected different texts .* got 5 in both"
    ):
        read_run_data(TrainConfig(data=data, eval_data=other))


@pytest.mark.parametrize("suite", SUITES)
def test_a_text_of_a_built_in_suite_is_refused_wherever_the_split_would_put_it(tmp_path: Path, suite: str) -> None:
    for i in (0, 5, 11):
        text = SUITES[suite]().texts[i]
        with pytest.raises(
            ValueError, match="--data .* and the built-in suites: expected different texts .* got 1 in both"
        ):
            read_run_data(TrainConfig(data=write(tmp_path / "t.jsonl", [*TEXTS, (text, "left")])))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("a", "x"), ("b", "x")], r"t\.jsonl: expected at least 2 labels, got only 'x'"),
        ([("a", "x"), ("b", "x"), ("c", "y")], r"t\.jsonl: expected at least 2 texts a label, got 1 for 'y'"),
        ([], r"t\.jsonl: expected rows of labelled text, got an empty file"),
    ],
)
def test_text_that_cannot_be_contrasted_is_refused_on_either_side(
    tmp_path: Path, pairs: Sequence[tuple[str, str]], message: str
) -> None:
    bad, good = write(tmp_path / "t.jsonl", pairs), write(tmp_path / "good.jsonl", TEXTS)
    for config in (TrainConfig(data=bad), TrainConfig(data=good, eval_data=bad)):
        with pytest.raises(ValueError, match=message):
            read_run_data(config)


def test_a_batch_of_ones_own_text_that_the_devices_cannot_share_is_refused(tmp_path: Path) -> None:
    chosen = (StageConfig(name="a", classes=3, texts_per_class=3),)
    config = TrainConfig(data=write(tmp_path / "t.jsonl", TEXTS), stages=chosen, devices=2)
    with pytest.raises(ValueError, match=r"--devices 2: .*stage a, got 3 x 3 = 9 texts; set --stages\.0\.classes or"):
        read_run_data(config)
