"""What each stage trains on: windows of sequence families, or the user's own labelled text or pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from data.families import families_of, find_family
from data.folds import paper_folds
from data.sequences import windows
from data.suites import Suite, selection_suite
from data.training_texts import TrainingTexts
from lightning_app.config import StageConfig, TrainConfig
from lightning_app.objective_settings import check_objective
from lightning_app.own_data import read_own_data
from lightning_app.recipe_settings import check_recipe, check_selects
from lightning_app.replicas import with_replicas

FAMILY_GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"six": families_of("six"), "broad": families_of("broad")}
)
BATCH = 48
"""Texts that a batch has by default."""
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true", "32", "bf16", "16", "64")
"""Lightning's, without those of other packages."""
MOST_CLASSES = 12
"""Labels that a batch has by default, unless it is made of twos."""


@dataclass(frozen=True, kw_only=True)
class StageData:
    """One stage, ready to train: its texts and the shape of its batches."""

    stage: StageConfig
    name: str
    data: TrainingTexts
    classes: int
    per_class: int
    replica: int | None = None
    """Which of the run's replicas, from 1; None: a stage that is trained once."""
    seed: int | None = None
    """Of its batches and dropout. None: the run's."""


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
    check_recipe(config)
    _check_cross_fit(config)
    if config.data is None:
        if config.eval_data is not None:
            raise ValueError(
                "--eval-data: expected --data beside it, got none; use evaluate.py --suite FILE to measure a model only"
            )
        stages = tuple(_family_stage(stage, i, config) for i, stage in enumerate(config.stages))
        _check_shares(stages, config)
        return with_replicas(RunData(stages=stages, selection=selection_suite(), reported=None), config)
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
    if config.token_budget is not None and config.token_budget < 1:
        raise ValueError(
            f"--token-budget: expected at least 1 token, got {config.token_budget}; leave it out for no limit"
        )
    if config.batching == "packed" and config.strategy == "fsdp":
        raise ValueError(
            "--batching packed: expected a model that is whole on every device, got --strategy fsdp; take sorted or padded"
        )
    for flag, got in (("--temperature", config.temperature), ("--gradient-clip-val", config.gradient_clip_val)):
        if not 0 < got < float("inf"):
            raise ValueError(f"{flag}: expected a positive number, got {got}")
    check_objective(config)
    if config.log_every_n_steps < 1:
        raise ValueError(f"--log-every-n-steps: expected at least 1, got {config.log_every_n_steps}")
    for flag, count, least in (
        ("--num-workers", config.num_workers, 0),
        ("--every-n-train-steps", config.every_n_train_steps, 0),
    ):
        if count < least:
            raise ValueError(f"{flag}: expected at least {least}, got {count}")
    if not 0 <= config.seed < 2**32:
        raise ValueError(f"--seed: expected a number from 0 to 4294967295, got {config.seed}; 0 is the default")
    if config.precision not in PRECISIONS:
        raise ValueError(
            f"--precision: expected one of {', '.join(PRECISIONS)}, got {config.precision!r}; 32-true is the default"
        )
    if not 0 < config.timeout <= 1e6:
        raise ValueError(
            f"--timeout: expected seconds, above 0 and at most 1e6, got {config.timeout}; 1800 is the default"
        )
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
    if config.devices > 0 and size % (config.devices * max(1, config.num_nodes)):
        raise ValueError(
            f"{flag} --devices {config.devices}: expected a divisor of a fold's {size} texts, which are one batch; "
            "use 1, 2, 3, 4, 6 or 12 devices"
        )


def _check_shares(stages: Sequence[StageData], config: TrainConfig) -> None:
    """Every device trains on an equal share of each batch."""
    for flag, got in (("--devices", config.devices), ("--num-nodes", config.num_nodes)):
        if got < 1:
            raise ValueError(f"{flag}: expected at least 1, got {got}")
    asked = f"--devices {config.devices}" + (f" --num-nodes {config.num_nodes}" if config.num_nodes > 1 else "")
    for i, stage in enumerate(stages):
        size, settings = stage.classes * stage.per_class, f"--stages.{i}.classes"
        if size % (config.devices * config.num_nodes):
            if not stage.data.in_pairs:
                settings += f" or --stages.{i}.texts-per-class"
            raise ValueError(
                f"{asked}: expected a divisor of the batch of stage {stage.stage.name}, got {stage.classes} x "
                f"{stage.per_class} = {size} texts; set {settings}"
            )


def _family_stage(stage: StageConfig, position: int, config: TrainConfig) -> StageData:
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
    return _shaped(stage, position, data, config, twos=config.objective == "infonce")


def _text_data(config: TrainConfig) -> RunData:
    own = read_own_data(config)
    twos = own.twos or config.objective == "infonce"
    stages = tuple(_shaped(stage, i, own.training, config, twos=twos) for i, stage in enumerate(_text_stages(config)))
    _check_shares(stages, config)
    check_selects(config, selects=own.selection is not None)
    return with_replicas(RunData(stages=stages, selection=own.selection, reported=own.reported), config)


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


def _shaped(stage: StageConfig, position: int, data: TrainingTexts, config: TrainConfig, *, twos: bool) -> StageData:
    """Settle P and K: as asked, or what fills a batch of 48 and what the smallest label has; of InfoNCE, K is a pair's."""
    counts: dict[int, int] = {}
    for label in data.labels:
        counts[label] = counts.get(label, 0) + 1
    smallest, flag = min(counts.values()), f"--stages.{position}"
    classes = stage.classes if stage.classes is not None else min(len(counts), BATCH // 2 if twos else MOST_CLASSES)
    per_class = stage.texts_per_class
    if config.objective == "infonce":
        per_class = _rows_of_a_pair(data, smallest, per_class, flag=f"{flag}.texts-per-class")
    elif per_class is None:
        per_class = max(2, min(BATCH // max(1, classes), smallest))
    for name, got, most, what in (
        ("classes", classes, len(counts), "pairs of the stage" if data.in_pairs else "labels of the stage"),
        ("texts-per-class", per_class, smallest, "texts of its smallest label"),
    ):
        if not 2 <= got <= most:
            raise ValueError(f"{flag}.{name}: expected 2 to {most} (the {what}), got {got}")
    return StageData(stage=stage, name=f"{position + 1}-{stage.name}", data=data, classes=classes, per_class=per_class)


def _rows_of_a_pair(data: TrainingTexts, smallest: int, asked: int | None, *, flag: str) -> int:
    """All texts of a pair, or two of a label."""
    size = smallest if data.in_pairs else 2
    if asked not in (None, size):
        what = "the texts of a pair of the data" if data.in_pairs else "which takes two texts of a label as a pair"
        raise ValueError(f"{flag}: expected {size} with --objective infonce ({what}), got {asked}; leave it out")
    return size
