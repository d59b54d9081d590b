"""The selection suite's word on a model: sklearn's silhouette, set back below the floor of what is kept of the base."""

import math
from types import SimpleNamespace

import pytest
import torch
from sklearn.metrics import silhouette_score

from evaluation.retention import debiased_cka
from lightning_app.selecting import first_best, selection_base, selection_score

LABELS = [0, 1] * 6
BASE = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
MOVED = BASE + torch.randn(12, 4, generator=torch.Generator().manual_seed(1))


def run_of(selection=True):
    """A run whose model embeds as ``run.now`` says."""
    suite = SimpleNamespace(texts=[str(i) for i in range(12)], labels=LABELS) if selection else None
    run = SimpleNamespace(data=SimpleNamespace(selection=suite), selection_base=None, now=BASE)
    run.encode = lambda texts: run.now
    return run


def test_the_base_is_what_the_model_was_at_the_first_call():
    run = run_of()
    assert torch.equal(selection_base(run)["selection"], BASE)
    run.now = MOVED
    assert torch.equal(selection_base(run)["selection"], BASE)


def test_the_score_is_the_silhouette_while_enough_is_kept():
    run = run_of()
    selection_base(run)
    run.now = MOVED
    kept = debiased_cka(MOVED, BASE)
    assert 0 < kept < 1
    wanted = silhouette_score(MOVED.numpy(), LABELS)
    assert selection_score(run, floor=0.0) == pytest.approx(wanted, abs=1e-6)
    assert selection_score(run, floor=kept - 1e-6) == pytest.approx(wanted, abs=1e-6)
    assert selection_score(run, floor=kept + 1e-6) == pytest.approx(kept - 4, abs=1e-9)


def test_without_a_selection_suite_nothing_is_said():
    run = run_of(selection=False)
    assert selection_base(run) == {}
    assert math.isnan(selection_score(run, floor=0.5))


def test_the_first_of_the_best_is_taken_and_nan_is_worst():
    assert first_best({"a": math.nan, "b": -3.5, "c": 0.2, "d": 0.2}) == "c"
    assert first_best({"a": math.nan, "b": math.nan}) == "a"
    assert first_best({"a": math.nan, "b": -3.9}) == "b"
