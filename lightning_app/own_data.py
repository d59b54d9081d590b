"""The user's own data, labelled text or pairs: what is trained on, and what is held back or given to be measured."""

from dataclasses import dataclass

from data.labelled_text import (
    LabelledText,
    check_disjoint,
    check_trainable,
    read_labelled_text,
    split_held_back,
    suite_of,
)
from data.pairs import Pairs, as_labelled, check_pairs, is_pair_file, pair_rows, read_pairs, split_pairs
from data.suites import SUITES, Suite
from data.training_texts import TrainingTexts
from lightning_app.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class OwnData:
    """One's own data, taken apart."""

    training: TrainingTexts
    selection: Suite | None
    """Chooses epochs and merges; None: too little for a suite."""
    reported: Suite | None
    twos: bool
    """Whether batches are made of twos: of pairs."""


def read_own_data(config: TrainConfig) -> OwnData:
    """Read --data and --eval-data, and keep apart what is trained on and what is measured.

    Raises:
        ValueError: as the readers say; too few labels or pairs; hard negatives with --objective supcon; a text that is trained
            on and measured.
    """
    assert config.data is not None
    pairs = is_pair_file(config.data)
    given = _read_pairs(config) if pairs else read_labelled_text(config.data)
    if isinstance(given, LabelledText):
        check_trainable(given)
    reported = None
    if config.eval_data is not None:
        reported = _labelled(config.eval_data)
        check_disjoint(given.texts, reported.texts, names=(f"--data {config.data}", f"--eval-data {config.eval_data}"))
    reserved = [text for make in SUITES.values() for text in make().texts]
    check_disjoint(given.texts, reserved, names=(f"--data {config.data}", "the built-in suites"))
    if isinstance(given, Pairs):
        kept, *held = split_pairs(given, report=reported is None)
        training = pair_rows(kept) if config.objective == "infonce" else _texts(as_labelled(kept))
        selection, held_back = map(as_labelled, held)
    else:
        labelled, selection, held_back = split_held_back(given, report=reported is None)
        training = _texts(labelled)
    return OwnData(
        training=training,
        selection=_suite(selection, "selection"),
        reported=_suite(held_back if reported is None else reported, "data"),
        twos=pairs,
    )


def _read_pairs(config: TrainConfig) -> Pairs:
    assert config.data is not None
    pairs = read_pairs(config.data)
    check_pairs(pairs)
    if config.objective == "supcon" and pairs.rows_a_pair > 2:
        raise ValueError(
            f"--objective supcon: expected pairs without negatives, which have no label, got {config.data} with "
            f"{pairs.rows_a_pair - 2} a pair; use --objective infonce"
        )
    return pairs


def _labelled(path: str) -> LabelledText:
    """A file to be measured on; negatives say nothing there."""
    if is_pair_file(path):
        pairs = read_pairs(path)
        check_pairs(pairs)
        return as_labelled(pairs)
    labelled = read_labelled_text(path)
    check_trainable(labelled)
    return labelled


def _texts(labelled: LabelledText) -> TrainingTexts:
    return TrainingTexts(texts=labelled.texts, labels=labelled.labels, blocks=range(len(labelled.texts)))


def _suite(part: LabelledText, name: str) -> Suite | None:
    """A suite of what was held back; None when fewer than two labels have two texts in it."""
    full = [label for label in set(part.labels) if part.labels.count(label) >= 2]
    return suite_of(part, name) if len(full) >= 2 else None
