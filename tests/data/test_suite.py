"""A suite with one more nuisance, and with another separator."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.labelled_text import LabelledText, suite_of
from data.suite import Suite, separated, with_nuisance
from data.suites import broad_suite, matched_suite, paper_suite


def own_text() -> Suite:
    return suite_of(
        LabelledText(source="mine.csv", texts=("red 1", "green 2"), labels=(0, 1), names=("a", "b")), "mine"
    )


def test_a_nuisance_is_added_to_a_copy() -> None:
    suite = paper_suite()
    found = with_nuisance(suite, "tokens", range(24))
    assert found.nuisances["tokens"] == tuple(float(i) for i in range(24))
    assert {name: found.nuisances[name] for name in suite.nuisances} == dict(suite.nuisances)
    assert "tokens" not in suite.nuisances
    assert (found.texts, found.labels, found.blocks) == (suite.texts, suite.labels, suite.blocks)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("length", range(24), "nuisance 'length': expected a new name, got one of magnitude, .*rename it"),
        ("", range(24), "nuisance '': expected a new name"),
        ("tokens", range(23), "nuisance 'tokens': expected 24 values, one for each text of suite paper, got 23"),
        ("tokens", [float("nan")] * 24, "nuisance 'tokens': expected finite values, got nan for text 0"),
        ("tokens", [0.0] * 23 + [float("inf")], "expected finite values, got inf for text 23"),
    ],
)
def test_a_nuisance_that_does_not_fit_is_refused(name: str, values: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        with_nuisance(paper_suite(), name, values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", [paper_suite, broad_suite, matched_suite])
@pytest.mark.parametrize("separator", [" ", "\n", "; ", " and ", ",", "→"])
def test_only_what_stands_between_the_terms_changes(make: type, separator: str) -> None:
    suite = make()
    found = separated(suite, separator)
    assert found.texts == tuple(text.replace(", ", separator) for text in suite.texts)
    assert found.nuisances["length"] == tuple(float(len(text)) for text in found.texts)
    for name in ("magnitude", "window", "terms", "parity"):
        assert found.nuisances[name] == suite.nuisances[name]
    assert (found.name, found.labels, found.families, found.blocks) == (
        suite.name,
        suite.labels,
        suite.families,
        suite.blocks,
    )
    assert separated(found, ", ") == suite


def test_nuisances_that_depend_on_the_text_are_left_out() -> None:
    counted = with_nuisance(paper_suite(), "tokens", range(24))
    assert "tokens" not in separated(counted, " ").nuisances


@given(st.text(max_size=4))
def test_a_separator_either_keeps_every_number_or_is_refused(separator: str) -> None:
    suite = paper_suite()
    ambiguous = not separator or "-" in separator or any(character.isnumeric() for character in separator)
    if ambiguous:
        with pytest.raises(ValueError, match="--separator: expected some text without digits and '-', got"):
            separated(suite, separator)
        return
    for before, after in zip(suite.texts, separated(suite, separator).texts, strict=True):
        assert re.findall("[0-9]+", before) == re.findall("[0-9]+", after)
        assert separator in after


@pytest.mark.parametrize("separator", ["", "1", ", 2 ", "-", " - ", "٣", "²", "Ⅷ"])
def test_an_ambiguous_separator_is_refused(separator: str) -> None:
    with pytest.raises(ValueError, match="--separator: expected some text without digits"):
        separated(paper_suite(), separator)


def test_text_that_is_no_numbers_has_no_separator() -> None:
    with pytest.raises(ValueError, match="--separator: expected a suite of number sequences, got mine"):
        separated(own_text(), " ")
