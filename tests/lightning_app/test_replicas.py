"""Replicas: seeds, rates and shares of the texts follow from the run's seed and the replica's number alone."""

from collections import Counter

import pytest

from data.training_texts import TrainingTexts
from lightning_app.config import DEFAULT_MERGES, StageConfig, TrainConfig
from lightning_app.replicas import merges_of, replica_note, share_of
from lightning_app.stages import read_run_data

FIRST = StageConfig(name="first", families=("squares", "totients"))
SIX = StageConfig(name="six", families=("six",), classes=3, texts_per_class=4)
TEXTS = TrainingTexts(
    texts=[f"{i}" for i in range(60)], labels=[0] * 30 + [1] * 20 + [2] * 10, blocks=[i // 3 for i in range(60)]
)


def stages_of(**settings):
    return read_run_data(TrainConfig(stages=(FIRST, SIX), **settings)).stages


def test_a_share_has_so_many_texts_of_every_label_and_of_no_other():
    part = share_of(TEXTS, 0.25, least=4, seed=1)
    assert Counter(part.labels) == {0: 8, 1: 5, 2: 4}  # 7.5 and 2.5 are rounded up, and a batch takes four of a label
    places = [int(text) for text in part.texts]
    assert places == sorted(set(places))
    assert list(part.labels) == [TEXTS.labels[i] for i in places]
    assert list(part.blocks) == [TEXTS.blocks[i] for i in places]
    assert share_of(TEXTS, 1.0, least=4, seed=1) is TEXTS


def test_pairs_stay_whole():
    pairs = TrainingTexts(
        texts=[f"{i}" for i in range(30)],
        labels=[i // 3 for i in range(30)],
        blocks=range(30),
        roles=[i % 3 for i in range(30)],
    )
    part = share_of(pairs, 0.35, least=2, seed=0)
    assert sorted(Counter(part.labels).values()) == [3] * 4
    assert part.roles == [int(text) % 3 for text in part.texts]
    assert len(set(share_of(pairs, 0.1, least=2, seed=0).labels)) == 2


def test_the_share_is_drawn_uniformly():
    drawn = Counter(text for seed in range(300) for text in share_of(TEXTS, 0.5, least=2, seed=seed).texts)
    assert len(drawn) == 60
    assert all(110 < count < 190 for count in drawn.values())  # 150 each, with a standard deviation of 8.7


def test_the_last_stage_is_there_once_a_replica():
    stages = stages_of(replicas=3, replica_learning_rates=(1e-3, 2e-3), replica_fraction=0.5)
    assert [stage.name for stage in stages] == ["1-first", "2-six-1", "2-six-2", "2-six-3"]
    assert [stage.replica for stage in stages] == [None, 1, 2, 3]
    assert [stage.stage.learning_rate for stage in stages[1:]] == [1e-3, 2e-3, 1e-3]
    assert [(stage.classes, stage.per_class) for stage in stages[1:]] == [(3, 4)] * 3
    seeds, texts = {stage.seed for stage in stages[1:]}, {tuple(stage.data.texts) for stage in stages[1:]}
    assert len(seeds) == len(texts) == 3
    whole = stages_of()[1].data
    for stage in stages[1:]:
        wanted = {label: -(-count // 2) for label, count in Counter(whole.labels).items()}
        assert Counter(stage.data.labels) == wanted
        assert set(stage.data.texts) < set(whole.texts)


def test_a_replica_does_not_depend_on_how_many_there_are():
    assert stages_of(replicas=2, replica_fraction=0.5)[1:] == stages_of(replicas=5, replica_fraction=0.5)[1:3]
    assert stages_of(replicas=2)[1].seed != stages_of(replicas=2, seed=1)[1].seed


def test_one_replica_is_the_stage_itself():
    stages = stages_of(replicas=1)
    assert [stage.name for stage in stages] == ["1-first", "2-six"]
    assert [(stage.replica, stage.seed) for stage in stages] == [(None, None)] * 2


def test_replicas_are_searched_unless_merges_are_named():
    assert merges_of(TrainConfig()) == DEFAULT_MERGES
    assert merges_of(TrainConfig(replicas=2)) == (*DEFAULT_MERGES, "search")
    assert merges_of(TrainConfig(replicas=2, merges=("soup",))) == ("soup",)
    assert merges_of(TrainConfig(replicas=2, merges=())) == ()


def test_the_note_says_what_sets_a_replica_apart():
    config = TrainConfig(stages=(FIRST, SIX), replicas=2, replica_fraction=0.1)
    stages = read_run_data(config).stages
    assert replica_note(stages[0], config) is None
    count = len(stages[2].data.texts)
    assert replica_note(stages[2], config) == f"replica 2 of 2, learning rate 0.001, {count} texts"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replicas": 0}, "--replicas: expected at least 1, got 0"),
        ({"replicas": 2, "replica_fraction": 0.0}, r"--replica-fraction: expected a share in \(0, 1\], got 0.0"),
        ({"replicas": 2, "replica_fraction": 1.5}, r"--replica-fraction: expected a share in \(0, 1\], got 1.5"),
        (
            {"replicas": 2, "replica_fraction": float("nan")},
            r"--replica-fraction: expected a share in \(0, 1\], got nan",
        ),
        (
            {"replicas": 2, "replica_learning_rates": (1e-3, 0.0)},
            "--replica-learning-rates: expected positive numbers, got 0.0",
        ),
        (
            {"replicas": 2, "replica_learning_rates": (float("inf"),)},
            "--replica-learning-rates: expected positive numbers, got inf",
        ),
        ({"replica_fraction": 0.5}, "--replica-fraction: expected --replicas of 2 or more beside it, got 1"),
        ({"replica_learning_rates": (1e-3,)}, "--replica-learning-rates: expected --replicas of 2 or more"),
        ({"replicas": 2, "cross_fit": 2}, "--cross-fit 2: expected one last stage to fit again, got --replicas 2"),
    ],
)
def test_what_replicas_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        stages_of(**settings)
    assert "\n" not in str(error.value)
