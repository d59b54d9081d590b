"""Candidates: their order, the Pareto front, the choice, and the arguments of the merge that they stand for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merging.front import Candidate, Parameters, choose, front, meets, rank
from merging.methods import METHODS
from merging.request import settings_of

# few values, so that ties and duplicates are common
scores = st.sampled_from([-0.5, 0.0, 0.25, 0.5, 0.75, 1.0])
candidates = st.lists(
    st.builds(Candidate, st.sampled_from([Parameters(t=(t / 8,)) for t in range(9)]), scores, scores), max_size=12
)


def beats(a: Candidate, b: Candidate) -> bool:
    """Whether a is at least as good in both and better in one."""
    no_worse = a.separation >= b.separation and a.retention >= b.retention
    return no_worse and (a.separation > b.separation or a.retention > b.retention)


@given(candidates)
def test_the_front_is_what_nothing_beats(found):
    got = front(found)
    expected = [one for one in found if not any(beats(other, one) for other in found)]
    assert sorted(got, key=repr) == sorted(expected, key=repr)
    assert [one.retention for one in got] == sorted(one.retention for one in got)


@given(candidates.filter(bool), scores)
def test_the_choice_separates_best_above_the_floor(found, floor):
    enough = [one for one in found if one.retention >= floor]
    if not enough:
        with pytest.raises(ValueError, match="--retention: expected a merge that keeps at least"):
            choose(found, floor)
        return
    chosen = choose(found, floor)
    assert chosen in enough
    assert chosen.separation == max(one.separation for one in enough)
    assert any(chosen == one for one in front(enough))


def test_a_floor_that_nothing_reaches_names_what_keeps_most():
    low = Candidate(Parameters(t=(0.25,)), 0.125, 0.75)
    high = Candidate(Parameters(t=(0.75,)), 0.5, 0.5)
    with pytest.raises(ValueError, match=r"at least 0\.9, got at most 0\.7500, at t = 0\.25 with separation 0\.1250"):
        choose([low, high], 0.9)


def test_below_the_floor_the_order_is_by_retention():
    a, b = Candidate(Parameters(t=(0.1,)), 0.9, 0.3), Candidate(Parameters(t=(0.2,)), 0.1, 0.4)
    assert rank(b, 0.5) > rank(a, 0.5)
    assert rank(a, 0.2) > rank(b, 0.2)


def test_the_base_itself_keeps_everything_but_for_rounding():
    assert meets(Candidate(Parameters(t=(0.0,)), 0.1, 0.9999999999999954), 1.0)
    assert not meets(Candidate(Parameters(t=(0.0,)), 0.1, 0.99999), 1.0)


@pytest.mark.parametrize(
    ("parameters", "method", "arguments"),
    [
        (Parameters(t=(0.25,)), "slerp", {"t": 0.25}),
        (Parameters(t=(0.25,)), "linear", {"t": 0.25}),
        (Parameters(t=(0.3,)), "nuslerp", {"weights": [0.7, 0.3]}),
        (Parameters(weights=(0.5, 0.25, 0.25)), "karcher", {"weights": [0.5, 0.25, 0.25]}),
    ],
)
def test_the_arguments_are_those_the_method_is_told_by(parameters, method, arguments):
    assert parameters.arguments(METHODS[method]) == arguments


def test_knots_are_a_gradient_over_the_layers():
    knots = Parameters(t=(0.0, 0.5, 0.25))
    names = [f"layers.{layer}.mlp.weight" for layer in range(5)]
    by_t = settings_of(None, **knots.arguments(METHODS["slerp"]), inputs=2)
    assert [by_t.at(name, 5)["t"] for name in names] == [0.0, 0.25, 0.5, 0.375, 0.25]
    by_weights = settings_of(None, **knots.arguments(METHODS["karcher"]), inputs=2)
    assert [by_weights.at(name, 5)["weights"] for name in names] == [(1 - t, t) for t in (0.0, 0.25, 0.5, 0.375, 0.25)]


@pytest.mark.parametrize(
    ("parameters", "is_end"),
    [
        (Parameters(t=(0.0,)), True),
        (Parameters(t=(1.0,)), True),
        (Parameters(t=(0.5,)), False),
        (Parameters(t=(0.0, 1.0)), False),
        (Parameters(weights=(0.0, 1.0, 0.0)), True),
        (Parameters(weights=(0.5, 0.5, 0.0)), False),
    ],
)
def test_the_ends_are_the_inputs_by_themselves(parameters, is_end):
    assert parameters.is_end is is_end
