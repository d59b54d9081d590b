"""Fixtures of the tests of scores and searches."""

import pytest

from data.suites import Suite, broad_suite, selection_suite


def part_of(suite: Suite, step: int) -> Suite:
    """Every ``step``-th text, so that a test takes no time."""
    return Suite(
        name=suite.name,
        texts=suite.texts[::step],
        labels=suite.labels[::step],
        families=suite.families,
        blocks=suite.blocks[::step],
        nuisances={key: values[::step] for key, values in suite.nuisances.items()},
    )


@pytest.fixture
def small_suites(monkeypatch):
    """The two suites of a score, thinned out."""
    from lightning_app import scoring

    selection, broad = part_of(selection_suite(), 15), part_of(broad_suite(), 25)
    monkeypatch.setattr(scoring, "selection_suite", lambda: selection)
    monkeypatch.setattr(scoring, "broad_suite", lambda: broad)
    return selection, broad
