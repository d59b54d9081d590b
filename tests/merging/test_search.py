"""Searches on scores whose optimum is known; the merges are made by hand, so nothing else can be at fault."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from merging.front import Parameters, choose
from merging.methods import METHODS
from merging.schedule import Settings
from merging.search import (
    GOLDEN,
    TOLERANCE,
    explore,
    golden_section,
    greedy_soup,
    grid,
    lattice,
    refuse_search,
    search,
)


class Models:
    """Models of one number a layer, merged linearly; counts the merges."""

    def __init__(self, *values):
        self.values = [torch.tensor(value, dtype=torch.float64) for value in values]
        self.inputs, self.layers, self.merges = len(values), len(values[0]), 0

    def merge(self, *, settings: Settings):
        self.merges += 1
        merged = {}
        for layer in range(self.layers):
            name = f"layers.{layer}.weight"
            told = settings.at(name, self.layers)
            self.told = told
            shares = told.get("weights") or (1 - told["t"], told["t"])
            merged[name] = sum(w * v[layer] for w, v in zip(shares, self.values, strict=True)) / sum(shares)
        return merged


def numbers(tensors):
    return [float(tensors[name]) for name in sorted(tensors)]


def score_at(*target, retention=lambda values: 1.0):
    def score(tensors):
        values = numbers(tensors)
        return -sum((a - b) ** 2 for a, b in zip(values, target, strict=True)), retention(values)

    return score


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.1, 5), st.floats(0.1, 5))
def test_golden_section_finds_the_peak_of_a_unimodal_function(peak, low, left, right):
    """One peak, steeper on one side than on the other."""
    high = low + 0.5

    def evaluate(parameters):
        gap = parameters.t[0] - peak
        return -(abs(gap) ** left) if gap < 0 else -(abs(gap) ** right), 1.0

    found = explore(golden_section(low, high, 0.0), evaluate, evaluations=60)
    best = choose(found, 0.0)
    nearest = min(max(peak, low), high)
    assert abs(best.parameters.t[0] - nearest) <= 2 * TOLERANCE
    assert len(found) <= 2 + math.ceil(math.log(0.5 / TOLERANCE) / -math.log(GOLDEN))


@given(st.floats(0.05, 0.95))
def test_the_grid_finds_a_peak_that_the_floor_makes(border):
    """Separation rises and retention falls along t: the answer is where retention meets the floor."""
    found = explore(grid(0.5, 40), lambda p: (p.t[0], 0.5 + border - p.t[0]), evaluations=40)
    best = choose(found, 0.5)
    assert 0 <= border - best.parameters.t[0] <= 2 * TOLERANCE
    assert {0.0, 1.0} <= {candidate.parameters.t[0] for candidate in found}


@given(st.integers(5, 60))
def test_no_more_is_scored_than_was_allowed_and_no_place_twice(evaluations):
    models = Models([0.0, 0.0], [1.0, 1.0])
    found = search(
        models, score_at(0.3, 0.9), method="slerp", retention=0.5, strategy="evolve", evaluations=evaluations
    )
    assert models.merges == len(found) == len({candidate.parameters for candidate in found}) <= evaluations


def test_a_gradient_over_the_layers_beats_one_t():
    models, score = Models([0.0] * 4, [1.0] * 4), score_at(0.1, 0.4, 0.7, 1.0)
    common = {"method": "slerp", "retention": 0.5, "evaluations": 200}
    along = choose(search(models, score, **common, strategy="grid"), 0.5)
    by_layer = choose(search(models, score, **common, strategy="evolve"), 0.5)
    assert along.parameters.t == pytest.approx((0.55,), abs=0.002)
    assert by_layer.separation > -0.003 > along.separation
    assert by_layer.parameters.t == pytest.approx((0.1, 0.4, 0.7, 1.0), abs=0.06)


def test_a_method_told_by_weights_gets_a_gradient_of_weights():
    models = Models([0.0] * 3, [1.0] * 3)
    found = search(models, score_at(0.2, 0.5, 0.8), method="karcher", retention=0.0, strategy="evolve", evaluations=150)
    assert choose(found, 0.0).separation > -0.003


def recipe(accuracies, soup_score, floor):
    """Recipe 1 of Wortsman et al. as loops: the members of the greedy soup."""
    order = sorted(range(len(accuracies)), key=lambda index: accuracies[index], reverse=True)
    members = [order[0]]
    for index in order[1:]:
        tried = soup_score([*members, index])
        if tried[1] >= floor and tried[0] >= soup_score(members)[0]:
            members.append(index)
    return members


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=6), st.floats(-1, 1), st.floats(0, 2))
def test_the_greedy_soup_is_that_of_the_paper(values, target, width):
    """Scores of a mean of numbers; every model alone is within the floor, some soups may not be."""

    def soup_score(members):
        mean = sum(values[index] for index in members) / len(members)
        return -abs(mean - target), 1.0 if len(members) == 1 or abs(mean) <= width else 0.4

    def evaluate(parameters):
        return soup_score([index for index, weight in enumerate(parameters.weights) if weight])

    proposals, returned = greedy_soup(len(values), 0.5), []

    def kept():
        returned.append((yield from proposals))
        return returned[0]

    found = explore(kept(), evaluate, evaluations=50)
    # the sum of a soup in another order may differ in its last bit
    expected = recipe([soup_score([index])[0] for index in range(len(values))], soup_score, 0.5)
    got = [index for index, weight in enumerate(returned[0].parameters.weights) if weight]
    assert sorted(got) == sorted(expected)
    assert len(found) <= 2 * len(values) - 1
    weights = returned[0].parameters.weights
    assert {weight for weight in weights if weight} == {1 / len(got)}


def test_three_models_are_searched_over_the_simplex():
    models = Models([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0])
    found = search(models, score_at(0.6, 0.3, 0.1), method="linear", retention=0.5, strategy="grid", evaluations=120)
    best = choose(found, 0.5)
    assert best.parameters.weights == pytest.approx((0.6, 0.3, 0.1), abs=0.02)
    assert all(sum(c.parameters.weights) == pytest.approx(1, abs=2e-4) for c in found)
    ends = {c.parameters.weights for c in found if c.parameters.is_end}
    assert ends == {(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)}
    assert Parameters(weights=(1 / 3,) * 3) in {c.parameters for c in found}


def test_what_else_the_method_is_told_reaches_every_candidate():
    models = Models([0.0], [1.0], [2.0])
    search(models, score_at(0.3), method="ties", retention=0.0, evaluations=5, options={"density": 0.5, "scale": 2.0})
    assert models.told["density"] == (0.5, 0.5, 0.5)
    assert models.told["scale"] == 2.0


def test_auto_begins_with_the_greedy_soup_and_goes_on():
    models = Models([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0])
    found = search(models, score_at(0.5, 0.5, 0.0), method="karcher", retention=0.5, evaluations=30)
    assert [c.parameters.is_end for c in found[:3]] == [True] * 3
    assert found[3].parameters.weights == (0.5, 0.5, 0.0)
    assert len(found) == 30


@pytest.mark.parametrize("evaluations", [12, 20, 40, 100])
def test_the_lattice_is_as_fine_as_two_thirds_of_the_evaluations_allow(evaluations):
    found = explore(lattice(3, 0.0, evaluations, 0), lambda p: (p.weights[0], 1.0), evaluations=10_000)
    divisions = next(m for m in range(50, 0, -1) if math.comb(m + 2, 2) <= evaluations * 2 // 3)
    wanted = {
        (a / divisions, b / divisions, (divisions - a - b) / divisions)
        for a in range(divisions + 1)
        for b in range(divisions + 1 - a)
    }
    assert wanted <= {candidate.parameters.weights for candidate in found}


@pytest.mark.parametrize("strategy", ["grid", "evolve"])
def test_a_seed_decides_everything(strategy):
    def once(seed):
        models = Models([0.0] * 3, [1.0] * 3)
        return search(models, score_at(0.2, 0.9, 0.4), method="slerp", retention=0.0, strategy=strategy, seed=seed)

    assert once(1) == once(1)
    assert (once(1) == once(2)) is (strategy == "grid")


def test_every_candidate_is_shown_once_as_it_comes():
    shown = []
    found = explore(grid(0.0, 20), lambda p: (-((p.t[0] - 0.3) ** 2), 1.0), evaluations=20, watch=shown.append)
    assert tuple(shown) == found
    assert [c.parameters.t[0] for c in found[:10]] == sorted(c.parameters.t[0] for c in found[:10])
    assert all(a != b for a, b in pairwise(found))


def test_a_strategy_that_repeats_itself_is_ended():
    def stuck():
        while True:
            yield Parameters(t=(0.5,))

    assert len(explore(stuck(), lambda p: (0.0, 1.0), evaluations=5)) == 1


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ((math.nan, 0.9), r"score of t = 0\.3: expected finite numbers, got separation nan and retention 0\.9"),
        ((0.1, math.nan), r"score of t = 0\.3: expected finite numbers, got separation 0\.1 and retention nan"),
        ((math.inf, 0.9), "got separation inf"),
    ],
)
def test_a_score_that_is_no_number_is_refused_by_name(score, message):
    with pytest.raises(ValueError, match=message):
        explore(grid(0.0, 40), lambda p: score if p.t == (0.3,) else (0.5, 0.5), evaluations=40)


@pytest.mark.parametrize(
    ("method", "inputs", "change", "message"),
    [
        ("sce", 2, {}, "--search: expected a method told by --t or --weights, got sce"),
        ("model_stock", 2, {}, "--search: expected a method told by --t or --weights, got model_stock"),
        ("task_arithmetic", 1, {}, "--search: expected at least 2 models to choose between, got 1"),
        ("slerp", 2, {"retention": 1.5}, r"--retention: expected a number in \[0, 1\], got 1\.5"),
        ("slerp", 2, {"retention": math.nan}, r"--retention: expected a number in \[0, 1\], got nan"),
        ("slerp", 2, {"strategy": "random"}, "--strategy: expected one of auto, grid, greedy, evolve, got 'random'"),
        ("slerp", 2, {"strategy": "greedy"}, "--strategy greedy: expected a method told by --weights, got slerp"),
        ("slerp", 2, {"evaluations": 4}, "--evaluations: expected at least 5 for 2 models, got 4"),
        ("karcher", 6, {"evaluations": 6}, "--evaluations: expected at least 7 for 6 models, got 6"),
    ],
)
def test_what_cannot_be_searched_is_refused(method, inputs, change, message):
    asked = {"retention": 0.9, "strategy": "auto", "evaluations": 40} | change
    with pytest.raises(ValueError, match=message):
        refuse_search(METHODS[method], inputs, **asked)
