from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merging.request import settings_of
from merging.rule import OPTIONS, Rule, settle_rule

PARAMETERS = ("t", "weights", *OPTIONS)
BASE_ONLY = {"has_base": True, "base_index": None}


def settle(method: str, inputs: int = 2, **asked: Any) -> Rule:
    told = {key: asked.pop(key) for key in PARAMETERS if key in asked}
    settings = settings_of(None, inputs=inputs, **told)
    return settle_rule(method, inputs=inputs, **({"has_base": False, "base_index": None, "settings": settings} | asked))


def test_task_vectors_are_the_default_where_a_base_is_known_and_is_no_input() -> None:
    assert settle("slerp").space == "weight"
    assert settle("slerp", **BASE_ONLY).space == "task_vector"
    assert settle("slerp", **BASE_ONLY, space="weight").space == "weight"
    assert settle("slerp", has_base=True, base_index=0).space == "weight"


def test_the_base_is_the_zero_end_wherever_it_stands() -> None:
    assert settle("slerp", has_base=True, base_index=0, t=0.25).at("").weights == (0.75, 0.25)
    assert settle("slerp", has_base=True, base_index=1, t=0.25).at("").weights == (0.25, 0.75)
    assert settle("linear", t=0.25).at("").weights == (0.75, 0.25)


def test_defaults_are_the_uniform_soup_and_half_way() -> None:
    assert settle("linear", 4).at("").weights == (0.25,) * 4
    assert settle("slerp").at("").weights == (0.5, 0.5)
    assert settle("karcher", 3).at("").weights == pytest.approx((1 / 3,) * 3)
    assert settle("ties", 3, **BASE_ONLY).at("").weights == (1.0,) * 3


@given(st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=6))
def test_weights_are_scaled_to_sum_one(weights: list[float]) -> None:
    settled = settle("karcher", len(weights), weights=weights).at("").weights
    assert sum(settled) == pytest.approx(1)
    assert settled[0] * weights[1] == pytest.approx(settled[1] * weights[0])


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("slurp", {}, "did you mean slerp"),
    (
        "slerp",
        {"inputs": 3},
        "--inputs: slerp expected at least 2 models|exactly 2 models, got 3; karcher takes any number",
    ),
    ("linear", {"inputs": 1}, "--inputs: linear expected at least 2 models, got 1"),
    ("slerp", {"t": 1.5}, r"--t: expected a number in \[0, 1\], got 1.5"),
    ("slerp", {"t": -0.1}, "--t"),
    ("slerp", {"t": float("nan")}, "t: expected a finite number"),
    ("slerp", {"weights": [1, 1]}, "--weights: slerp expected --t"),
    ("karcher", {"t": 0.5}, "--t: karcher expected --weights"),
    ("linear", {"t": 0.5, "weights": [1, 1]}, "expected one of them, got both"),
    ("linear", {"t": 0.5, "inputs": 3}, "--t: linear expected 2 models"),
    ("linear", {"weights": [1, 1, 1]}, "--weights: expected 2 numbers, one per input, got 3"),
    ("linear", {"weights": [0, 0]}, "sum above zero"),
    ("linear", {"weights": [2, -1]}, "not negative"),
    ("linear", {"weights": [1e308, 1e308]}, "sum above zero"),
    ("linear", {"weights": [1, float("inf")]}, "finite"),
    ("linear", {"space": "task_vector"}, "--space task_vector: expected a base .* add --base"),
    ("linear", {"space": "task_vector", "has_base": True, "base_index": 1}, "base among them .* use --space weight"),
    ("linear", {"space": "task"}, "--space: expected one of weight, task_vector, got 'task'"),
    ("slerp", {"norm": "mean"}, "--norm: expected one of interpolate, base, geometric"),
    ("slerp", {"norm": "base"}, "--norm base: expected --base"),
    ("slerp", {"norm": "base", **BASE_ONLY}, "--norm base: .*--space weight"),
    ("linear", {"norm": "geometric"}, "linear expected no norm rule"),
    ("slerp", {"antipodal": "ignore"}, "--antipodal: expected one of error, linear, base"),
    ("slerp", {"antipodal": "base"}, "--antipodal base"),
    ("ties", {}, "--base: ties expected a base to take differences from, got none; add --base"),
    ("ties", {"has_base": True, "base_index": 0}, "--inputs: ties expected models other than the base"),
    ("ties", {**BASE_ONLY, "space": "weight"}, "--space: ties expected task_vector, got weight"),
    ("ties", {**BASE_ONLY, "density": 1.5}, "--density"),
    ("ties", {**BASE_ONLY, "density": [0.5]}, "--density: expected 2 numbers, one per input, got 1"),
    (
        "ties",
        {**BASE_ONLY, "granularity": "row"},
        "--granularity: ties expected tensor, as it looks at single elements, got 'row'",
    ),
    ("ties", {**BASE_ONLY, "scale": float("inf")}, "scale: expected a finite number"),
    ("della", {**BASE_ONLY, "density": 0.9, "epsilon": 0.2}, "--epsilon"),
    (
        "karcher",
        {"density": 0.5},
        "--density: karcher expected no parameters but norm, weights, got density; leave it out",
    ),
    ("passthrough", {}, "--inputs: passthrough expected exactly 1 models, got 2"),
    ("slerp", {"compat": "peft"}, "--compat: expected mergekit, got 'peft'"),
    ("karcher", {"compat": "mergekit", "norm": "geometric"}, "--norm: karcher expected no norm rule"),
    ("slerp", {"granularity": "head"}, "--granularity: expected one of tensor, row, column, layer, model, got 'head'"),
]


@pytest.mark.parametrize(("method", "asked", "message"), REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(method: str, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        settle(method, **asked)
    assert "\n" not in str(error.value)


def test_extrapolation_is_asked_for_by_its_flag() -> None:
    assert settle("slerp", t=1.5, extrapolate=True).at("").weights == (-0.5, 1.5)
    assert settle("linear", weights=[2, -1], extrapolate=True).at("").weights == (2.0, -1.0)
    assert settle("task_arithmetic", weights=[1, -1], **BASE_ONLY).at("").weights == (1.0, -1.0)


def test_a_schedule_gives_each_tensor_its_own_rule_and_names_the_tensor_it_fails_for() -> None:
    gradient = [{"filter": "mlp", "value": [0, 1]}, {"value": 0.5}]
    rule = settle("slerp", t=gradient, layers=3)
    assert [rule.at(f"layers.{i}.mlp.weight").weights[1] for i in range(3)] == [0, 0.5, 1]
    assert rule.at("layers.2.attention.weight").weights == (0.5, 0.5)
    beyond = settle("slerp", t=[{"filter": "mlp", "value": [0, 2]}, {"value": 0.5}], layers=3)
    with pytest.raises(ValueError, match=r"--t \(tensor layers.2.mlp.weight\): expected a number in \[0, 1\], got 2"):
        beyond.at("layers.2.mlp.weight")
