from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merging.rule import Rule, settle_rule

BASE_ONLY = {"has_base": True, "base_index": None}


def settle(method: str, inputs: int = 2, **asked: Any) -> Rule:
    defaults: dict[str, Any] = {
        "has_base": False,
        "base_index": None,
        "weights": None,
        "t": None,
        "space": None,
        "norm": "interpolate",
        "antipodal": "error",
    }
    return settle_rule(method, inputs=inputs, **(defaults | asked))


def test_task_vectors_are_the_default_where_a_base_is_known_and_is_no_input() -> None:
    assert settle("slerp").space == "weight"
    assert settle("slerp", **BASE_ONLY).space == "task_vector"
    assert settle("slerp", **BASE_ONLY, space="weight").space == "weight"
    assert settle("slerp", has_base=True, base_index=0).space == "weight"


def test_the_base_is_the_zero_end_wherever_it_stands() -> None:
    assert settle("slerp", has_base=True, base_index=0, t=0.25).weights == (0.75, 0.25)
    assert settle("slerp", has_base=True, base_index=1, t=0.25).weights == (0.25, 0.75)
    assert settle("linear", t=0.25).weights == (0.75, 0.25)


def test_defaults_are_the_uniform_soup_and_half_way() -> None:
    assert settle("linear", 4).weights == (0.25,) * 4
    assert settle("slerp").t == 0.5
    assert settle("karcher", 3).t is None


@given(st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=6))
def test_weights_are_scaled_to_sum_one(weights: list[float]) -> None:
    settled = settle("karcher", len(weights), weights=weights).weights
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
    ("slerp", {"t": float("nan")}, "--t"),
    ("slerp", {"weights": [1, 1]}, "--weights: slerp is told by --t"),
    ("karcher", {"t": 0.5}, "--t: karcher is told by --weights"),
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
    ("linear", {"norm": "geometric"}, "linear has no norm rule"),
    ("slerp", {"antipodal": "ignore"}, "--antipodal: expected one of error, linear, base"),
    ("slerp", {"antipodal": "base"}, "--antipodal base"),
]


@pytest.mark.parametrize(("method", "asked", "message"), REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(method: str, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        settle(method, **asked)
    assert "\n" not in str(error.value)
