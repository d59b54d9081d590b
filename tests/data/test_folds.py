"""Folds of the paper's suite: what is held out is never trained on, and every window has its turn."""

from collections import Counter
from typing import Any

import pytest

from data.folds import paper_folds
from data.suites import paper_suite


@pytest.mark.parametrize(("folds", "turns"), [(2, 1), (6, 3)])
def test_every_text_is_held_out_equally_often(folds: int, turns: int) -> None:
    found = paper_folds(folds)
    assert len(found) == folds
    assert len({fold.name for fold in found}) == folds
    assert Counter(i for fold in found for i in fold.held_out) == dict.fromkeys(range(24), turns)


@pytest.mark.parametrize("folds", [2, 6])
def test_a_fold_trains_on_two_windows_a_family_and_holds_out_the_other_two(folds: int) -> None:
    suite = paper_suite()
    for fold in paper_folds(folds):
        assert sorted((*fold.trained_on, *fold.held_out)) == list(range(24))
        assert fold.training.texts == [suite.texts[i] for i in fold.trained_on]
        assert fold.training.labels == [suite.labels[i] for i in fold.trained_on]
        assert fold.training.blocks == [suite.blocks[i] for i in fold.trained_on]
        for part in (fold.trained_on, fold.held_out):
            assert Counter(suite.labels[i] for i in part) == dict.fromkeys(range(6), 2)
        windows = {str(1 + int(suite.nuisances["window"][i])) for i in fold.held_out}
        assert fold.name == "-".join(sorted(windows))
        assert not {suite.texts[i] for i in fold.held_out} & set(fold.training.texts)


def test_two_folds_interleave_the_windows() -> None:
    assert [fold.name for fold in paper_folds()] == ["1-3", "2-4"]


@pytest.mark.parametrize("folds", [0, 1, 3, 4, 24, -2, True, 2.5, "2"])
def test_another_number_of_folds_is_refused(folds: Any) -> None:
    with pytest.raises(ValueError, match=r"--cross-fit: expected 2 or 6 folds, got .*one alone has no silhouette"):
        paper_folds(folds)
