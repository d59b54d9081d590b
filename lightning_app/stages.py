"""What each stage trains on: windows of sequence families, or the user's own labelled text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from data.families import families_of, find_family
from data.folds import paper_folds
from data.labelled_text import (
    LabelledText,
    check_disjoint,
    check_trainable,
    read_labelled_text,
    split_held_back,
    suite_of,
)
from data.sequences import windows
from data.suites import SUITES, Suite, selection_suite
from data.training_texts import TrainingTexts
from lightning_app.config import StageConfig, TrainConfig

FAMILY_GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"six": families_of("six"), "broad": families_of("broad")}
)
BATCH = 48
"""Texts that a batch has by default."""
MOST_CLASSES = 12


@dataclass(frozen=True, kw_only=True)
class StageData:
    """One stage, ready to train: its texts and the shape of its batches."""

    stage: StageConfig
    name: str
    data: TrainingTexts
    classes: int
    per_class: int


@dataclass(frozen=True, kw_only=True)
class RunData:
    """All data of a run: the stages, the suite that chooses (None: too little text for one), and the user's own reported suite."""

    stages: tuple[StageData, ...]
    selection: Suite | None
    reported: Suite | None


def read_run_data(config: TrainConfig) -> RunData:
    """Read and check everything that a run trains and evaluates on.

    Raises:
        ValueError: as the readers say; a stage without families, with unknown or held-out ones, or with fewer than two; the
            same text for training and evaluation; a batch that the data cannot fill or the devices cannot share; settings out
            of range.
    """
    if not config.stages:
        raise ValueError("--stages: expected at least one stage, got none; leave it out for the default two")
    names = [stage.name for stage in config.stages]
    if len(set(names)) < len(names) or not all(name.replace("-", "").replace("_", "").isalnum() for name in names):
        raise ValueError(
            f"--stages: expected different names of letters, digits, - and _, got {', '.join(map(repr, names))}"
        )
    for i, stage in enumerate(config.stages):
        _check_settings(stage, f"--stages.{i}")
    _check_limits(config)
    _check_cross_fit(config)
    if config.data is None:
        if config.eval_data is not None:
            raise ValueError(
                "--eval-data: expected --data beside it, got none; use evaluate.py --suite FILE to measure a model only"
            )
        stages = tuple(_family_stage(stage, i) for i, stage in enumerate(config.stages))
        _check_shares(stages, config.devices)
        return RunData(stages=stages, selection=selection_suite(), reported=None)
    return _text_data(config)


def _check_settings(stage: StageConfig, flag: str) -> None:
    for name, got, least in (
        ("epochs", stage.epochs, 1),
        ("steps-per-epoch", stage.steps_per_epoch, 1),
        ("patience", stage.patience, 0),
    ):
        if got < least:
            raise ValueError(f"{flag}.{name}: expected at least {least}, got {got}")
    if not 0 < stage.learning_rate < float("inf"):
        raise ValueError(
            f"{flag}.learning-rate: expected a positive number, got {stage.learning_rate}; 1e-3 is the default"
        )


def _check_limits(config: TrainConfig) -> None:
    for flag, got in (("--temperature", config.temperature), ("--gradient-clip-val", config.gradient_clip_val)):
        if not 0 < got < float("inf"):
            raise ValueError(f"{flag}: expected a positive number, got {got}")
    if config.max_steps == 0 or config.max_steps < -1:
        raise ValueError(f"--max-steps: expected at least 1, or -1 for no limit, got {config.max_steps}")


def _check_cross_fit(config: TrainConfig) -> None:
    """The paper's suite belongs to the families, and the stage that is fitted again must be about them."""
    if config.cross_fit == 0:
        return
    folds = paper_folds(config.cross_fit)
    flag = f"--cross-fit {config.cross_fit}"
    if config.data is not None:
        raise ValueError(
            f"{flag}: expected a run on the sequence families, whose suite is the paper's, got --data {config.data}; drop one"
        )
    last = config.stages[-1]
    named = {name for family in last.families for name in FAMILY_GROUPS.get(family, (family,))}
    if missing := [name for name in families_of("six") if name not in named]:
        raise ValueError(
            f"{flag}: expected the paper's six families in the last stage, which is fitted again on the paper's windows, got "
            f"{last.name} without {', '.join(missing)}; make a stage with --stages.N.families six the last one"
        )
    size = len(folds[0].training.texts)
    if config.devices > 0 and size % config.devices:
        raise ValueError(
            f"{flag} --devices {config.devices}: expected a divisor of a fold's {size} texts, which are one batch; "
            "use 1, 2, 3, 4, 6 or 12 devices"
        )


def _check_shares(stages: Sequence[StageData], devices: int) -> None:
    """Every device trains on an equal share of each batch."""
    if devices < 1:
        raise ValueError(f"--devices: expected at least 1, got {devices}")
    for i, stage in enumerate(stages):
        size = stage.classes * stage.per_class
        if size % devices:
            raise ValueError(
                f"--devices {devices}: expected a divisor of the batch of stage {stage.stage.name}, got {stage.classes} x "
                f"{stage.per_class} = {size} texts; set --stages.{i}.classes or --stages.{i}.texts-per-class"
            )


def _family_stage(stage: StageConfig, position: int) -> StageData:
    names = [name for family in stage.families for name in FAMILY_GROUPS.get(family, (family,))]
    flag = f"--stages.{position}.families"
    if len(set(names)) < 2:
        raise ValueError(f"{flag}: expected at least 2 families (or six, or broad), got {len(set(names))}; name some")
    found = []
    for label, name in enumerate(dict.fromkeys(names)):
        if find_family(name).role == "held-out":
            raise ValueError(
                f"{flag}: expected families that may be trained on, got {name!r}, which is held out for evaluation"
            )
        found += [(window, label) for window in windows(name, "training")]
    data = TrainingTexts(
        texts=[window.text for window, _ in found],
        labels=[label for _, label in found],
        blocks=[window.block for window, _ in found],
    )
    return _shaped(stage, position, data)


def _text_data(config: TrainConfig) -> RunData:
    assert config.data is not None
    labelled = read_labelled_text(config.data)
    check_trainable(labelled)
    training, selection, reported = split_held_back(labelled, report=config.eval_data is None)
    if config.eval_data is not None:
        reported = read_labelled_text(config.eval_data)
        check_trainable(reported)
        check_disjoint(
            labelled.texts, reported.texts, names=(f"--data {config.data}", f"--eval-data {config.eval_data}")
        )
    reserved = [text for make in SUITES.values() for text in make().texts]
    check_disjoint(labelled.texts, reserved, names=(f"--data {config.data}", "the built-in suites"))
    data = TrainingTexts(texts=training.texts, labels=training.labels, blocks=range(len(training.texts)))
    stages = tuple(_shaped(stage, i, data) for i, stage in enumerate(_text_stages(config)))
    _check_shares(stages, config.devices)
    return RunData(stages=stages, selection=_suite(selection, "selection"), reported=_suite(reported, "data"))


def _text_stages(config: TrainConfig) -> tuple[StageConfig, ...]:
    """The stages for one's own text: the configured ones without families, or one stage named data."""
    if config.stages == TrainConfig().stages:
        return (StageConfig(name="data"),)
    for i, stage in enumerate(config.stages):
        if stage.families:
            raise ValueError(
                f"--stages.{i}.families: expected none beside --data, got {', '.join(stage.families)}; drop one of the two"
            )
    return config.stages


def _suite(part: LabelledText, name: str) -> Suite | None:
    """A suite of what was held back; None when fewer than two labels have two texts in it."""
    full = [label for label in set(part.labels) if part.labels.count(label) >= 2]
    return suite_of(part, name) if len(full) >= 2 else None


def _shaped(stage: StageConfig, position: int, data: TrainingTexts) -> StageData:
    """Settle P and K: as asked, or what fills a batch of 48 and what the smallest label has."""
    counts: dict[int, int] = {}
    for label in data.labels:
        counts[label] = counts.get(label, 0) + 1
    classes = stage.classes if stage.classes is not None else min(len(counts), MOST_CLASSES)
    per_class = stage.texts_per_class
    if per_class is None:
        per_class = max(2, min(BATCH // max(1, classes), min(counts.values())))
    for flag, got, most, what in (
        ("classes", classes, len(counts), "labels of the stage"),
        ("texts-per-class", per_class, min(counts.values()), "texts of its smallest label"),
    ):
        if not 2 <= got <= most:
            raise ValueError(f"--stages.{position}.{flag}: expected 2 to {most} (the {what}), got {got}")
    return StageData(stage=stage, name=f"{position + 1}-{stage.name}", data=data, classes=classes, per_class=per_class)
