"""In-memory merges against float64 oracles; the numerics of the engine are tested here."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merging import merge_state_dicts, merge_tensors
from tests.merging import oracle

ACCURACY = 3e-6


def pair_at(theta: float, ratio: float = 1.0, size: int = 300) -> tuple[Tensor, Tensor]:
    """Two float32 tensors at about ``theta`` whose norms differ by ``ratio``."""
    generator = torch.Generator().manual_seed(3)
    u, v = torch.randn(2, size, dtype=torch.float64, generator=generator)
    u = u / u.norm()
    v = v - (v @ u) * u
    v = v / v.norm()
    return u.float(), (ratio * (math.cos(theta) * u + math.sin(theta) * v)).float()


def cone(count: int, spread: float, size: int = 200, seed: int = 0) -> list[Tensor]:
    """Tensors around one direction, with norms between 0.1 and 10."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(size, generator=generator)
    norms = torch.logspace(-1, 1, count)
    parts = [centre + spread * torch.randn(size, generator=generator) for _ in range(count)]
    return [norm * part / part.norm() for norm, part in zip(norms, parts, strict=True)]


@pytest.mark.parametrize("ratio", [1.0, 10.0, 0.1])
@pytest.mark.parametrize("theta", [1e-6, 1e-5, 1e-4, 1e-3, 0.1, 1.0, 2.0, 3.0, math.pi - 1e-2, math.pi - 1.1e-3])
@pytest.mark.parametrize("t", [0.5, 0.1])
def test_slerp_is_the_float64_formula_from_nearly_parallel_to_nearly_opposite(
    theta: float, ratio: float, t: float
) -> None:
    a, b = pair_at(theta, ratio)
    assert oracle.relative_error(merge_tensors([a, b], method="slerp", t=t), oracle.slerp(a, b, t)) < ACCURACY


@pytest.mark.parametrize("spread", [1e-6, 1e-3, 0.3, 1.0])
@pytest.mark.parametrize("count", [3, 4, 7])
def test_karcher_is_the_float64_iteration_on_whole_vectors(count: int, spread: float) -> None:
    tensors = cone(count, spread)
    raw = [1.0 + index for index in range(count)]
    weights = [w / sum(raw) for w in raw]
    got = merge_tensors(tensors, method="karcher", weights=raw)
    assert oracle.relative_error(got, oracle.karcher(tensors, weights)) < ACCURACY


@given(count=st.integers(2, 5), seed=st.integers(0, 99), data=st.data())
@settings(max_examples=30, deadline=None)
def test_linear_is_the_weighted_average(count: int, seed: int, data: st.DataObject) -> None:
    tensors = cone(count, 1.0, size=40, seed=seed)
    raw = data.draw(st.lists(st.floats(0.01, 10), min_size=count, max_size=count))
    got = merge_tensors(tensors, method="linear", weights=raw)
    assert oracle.relative_error(got, oracle.linear(tensors, [w / sum(raw) for w in raw])) < ACCURACY


@pytest.mark.parametrize("method", ["linear", "slerp", "karcher"])
def test_task_vectors_are_merged_as_differences_and_added_to_the_base(method: str) -> None:
    base = torch.randn(20, 15, generator=torch.Generator().manual_seed(9))
    inputs = [base + 0.01 * delta.reshape(20, 15) for delta in cone(2, 2.0, size=300)]
    deltas = [x.double() - base.double() for x in inputs]
    expected = {
        "linear": oracle.linear(deltas, [0.5, 0.5]),
        "slerp": oracle.slerp(deltas[0], deltas[1], 0.5),
        "karcher": oracle.karcher(deltas, [0.5, 0.5]),
    }[method]
    got = merge_tensors(inputs, base=base, method=method)
    assert oracle.relative_error(got, base.double() + expected) < ACCURACY
    assert oracle.relative_error(got.double() - base.double(), expected) < 1e-4
    weight_space = merge_tensors(inputs, base=base, method=method, space="weight")
    assert torch.equal(weight_space, merge_tensors(inputs, method=method))


@given(seed=st.integers(0, 999), weight=st.floats(0.05, 0.95))
@settings(max_examples=30, deadline=None)
def test_karcher_of_two_is_slerp(seed: int, weight: float) -> None:
    a, b = cone(2, 3.0, size=30, seed=seed)
    by_weights = merge_tensors([a, b], method="karcher", weights=[1 - weight, weight])
    torch.testing.assert_close(by_weights, merge_tensors([a, b], method="slerp", t=weight), rtol=1e-6, atol=1e-7)


@given(order=st.permutations(range(4)))
@settings(max_examples=10, deadline=None)
@pytest.mark.parametrize("method", ["linear", "karcher"])
def test_the_order_of_the_inputs_does_not_matter(method: str, order: Sequence[int]) -> None:
    tensors, weights = cone(4, 1.0), [0.1, 0.2, 0.3, 0.4]
    expected = merge_tensors(tensors, method=method, weights=weights)
    got = merge_tensors([tensors[i] for i in order], method=method, weights=[weights[i] for i in order])
    assert oracle.relative_error(got, expected) < 1e-6


def test_slerp_from_the_other_end_is_the_same() -> None:
    a, b = pair_at(1.0, 4.0)
    forward, back = merge_tensors([a, b], method="slerp", t=0.3), merge_tensors([b, a], method="slerp", t=0.7)
    torch.testing.assert_close(forward, back, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_the_ends_of_the_arc_are_the_inputs_bit_for_bit(t: float) -> None:
    pair = pair_at(0.7, 3.0)
    assert torch.equal(merge_tensors(pair, method="slerp", t=t), pair[int(t)])


def test_with_the_base_among_the_inputs_it_is_the_zero_end_in_weight_space() -> None:
    base, other = pair_at(0.5)
    for inputs in ([base, other], [other, base]):
        got = merge_tensors(inputs, base=base, method="slerp", t=0.25)
        assert oracle.relative_error(got, oracle.slerp(base, other, 0.25)) < ACCURACY
    with pytest.raises(ValueError, match=r"--space task_vector.*base among them"):
        merge_tensors([base, other], base=base, method="slerp", space="task_vector")


@pytest.mark.parametrize("theta", [1e-3, 1e-2, 0.1])
def test_half_way_between_equal_norms_slerp_leaves_linear_by_theta_squared_over_eight(theta: float) -> None:
    a, b = (x.double() for x in pair_at(theta))
    a, b = a / a.norm(), b / b.norm()
    gap = merge_tensors([a, b], method="slerp", t=0.5) - merge_tensors([a, b], method="linear", t=0.5)
    assert float(gap.norm()) == pytest.approx(theta**2 / 8, rel=1e-2)


def test_a_spherical_mean_keeps_the_length_that_a_soup_of_orthogonal_updates_loses() -> None:
    base, count = torch.zeros(400), 4
    updates = [torch.zeros(400).index_fill(0, torch.arange(100 * i, 100 * i + 100), 1.0) for i in range(count)]
    soup = merge_tensors(updates, base=base, method="linear")
    mean = merge_tensors(updates, base=base, method="karcher")
    assert float(soup.norm() / updates[0].norm()) == pytest.approx(0.5, rel=1e-6)
    assert float(mean.norm() / updates[0].norm()) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["linear", "karcher"])
def test_identical_inputs_come_back_bit_for_bit(dtype: torch.dtype, method: str) -> None:
    tensor = torch.randn(7, 5).to(dtype)
    got = merge_tensors([tensor, tensor.clone(), tensor.clone()], method=method, weights=[0.2, 0.3, 0.5])
    assert got.dtype == dtype
    assert torch.equal(got, tensor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["linear", "slerp", "karcher"])
@pytest.mark.parametrize("with_base", [False, True])
def test_a_16_bit_merge_is_the_rounded_float32_merge(dtype: torch.dtype, method: str, with_base: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    base, x, y = torch.randn(3, 100_000, generator=generator).to(dtype)
    wide = merge_tensors([x.float(), y.float()], base=base.float() if with_base else None, method=method)
    assert torch.equal(merge_tensors([x, y], base=base if with_base else None, method=method), wide.to(dtype))


def test_a_zero_input_makes_slerp_linear() -> None:
    a = torch.randn(50)
    for t in (0.0, 0.25, 1.0):
        got = merge_tensors([torch.zeros(50), a], method="slerp", t=t)
        torch.testing.assert_close(got, t * a, rtol=1e-6, atol=0)


def test_a_zero_input_leaves_the_direction_and_stays_in_the_length() -> None:
    a, b = pair_at(1.0)
    got = merge_tensors([a, torch.zeros_like(a), b], method="karcher")
    torch.testing.assert_close(got, merge_tensors([a, b], method="karcher") * 2 / 3, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("method", ["slerp", "karcher"])
def test_opposite_inputs_follow_the_antipodal_policy(method: str) -> None:
    a = torch.randn(60)
    b = -2 * a
    with pytest.raises(ValueError, match=r"tensor tensor: .*antipodal.*--antipodal linear or base"):
        merge_tensors([a, b], method=method)
    linear = merge_tensors([a, b], method="linear")
    assert torch.equal(merge_tensors([a, b], method=method, antipodal="linear"), linear)
    base = torch.randn(60)
    got = merge_tensors([base + a, base - a], base=base, method=method, antipodal="base")
    assert torch.equal(got, base)
    got = merge_tensors([a, b], base=a, method=method, antipodal="base")
    assert torch.equal(got, a)


def test_three_inputs_without_a_mean_direction_are_antipodal_too() -> None:
    triangle = [
        torch.tensor([math.cos(x), math.sin(x)], dtype=torch.float64) for x in (0, 2 * math.pi / 3, -2 * math.pi / 3)
    ]
    with pytest.raises(ValueError, match="antipodal"):
        merge_tensors(triangle, method="karcher")


@pytest.mark.parametrize(
    ("norm", "expected"),
    [("interpolate", 0.25 * 1 + 0.75 * 4), ("geometric", 4**0.75), ("base", 7.0)],
)
def test_the_norm_rule_sets_the_length_and_not_the_direction(norm: str, expected: float) -> None:
    a, b = pair_at(1.0, ratio=4.0)
    base = 7 * torch.roll(a, 1)
    got = merge_tensors([a, b], base=base, space="weight", method="slerp", t=0.75, norm=norm)
    plain = merge_tensors([a, b], method="slerp", t=0.75)
    assert float(got.norm()) == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(got / got.norm(), plain / plain.norm())


def test_results_do_not_depend_on_how_a_tensor_is_cut_into_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [x.reshape(100, 7) for x in cone(3, 1.0, size=700)]
    whole = merge_tensors(tensors, method="karcher")
    monkeypatch.setattr("merging.pieces.CHUNK", 20)
    torch.testing.assert_close(merge_tensors(tensors, method="karcher"), whole, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", ["linear", "slerp", "karcher"])
def test_a_single_number_has_no_direction_and_is_merged_linearly(method: str) -> None:
    base, up, down = torch.tensor(2.0), torch.tensor(3.0), torch.tensor([0.0]).squeeze()
    assert float(merge_tensors([up, down], base=base, method=method)) == 1.5


def test_shapes_dtypes_and_views_survive() -> None:
    scalar = merge_tensors([torch.tensor(1.0), torch.tensor(3.0)], method="linear")
    assert scalar.shape == ()
    assert float(scalar) == 2
    empty = merge_tensors([torch.zeros(0, 4), torch.zeros(0, 4)], method="karcher")
    assert empty.shape == (0, 4)
    view = torch.arange(6.0).reshape(2, 3).T
    assert torch.equal(merge_tensors([view, view + 2], method="linear"), view + 1)
    parameter = torch.nn.Parameter(torch.ones(3))
    assert not merge_tensors([parameter, parameter + 1], method="linear").requires_grad


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused_with_input_and_count(bad: float) -> None:
    spoiled = torch.ones(9)
    spoiled[2:4] = bad
    with pytest.raises(ValueError, match=r"input 1: tensor tensor: .*got 2 that are NaN or infinite"):
        merge_tensors([torch.ones(9), spoiled], method="linear")
    with pytest.raises(ValueError, match=r"base: tensor tensor: .*got 2 "):
        merge_tensors([torch.ones(9), torch.zeros(9)], base=spoiled, method="linear")
    with pytest.raises(ValueError, match=r"input 0: tensor tensor: .*got 2 "):
        merge_tensors([spoiled, spoiled], method="linear")


def test_an_overflow_on_the_cast_is_refused() -> None:
    large = torch.full((3,), 6e4, dtype=torch.float16)
    base = torch.zeros(3, dtype=torch.float16)
    sideways = torch.tensor([6e4, 6e4, -6e4], dtype=torch.float16)
    flat = torch.tensor([6e4, 0, 0], dtype=torch.float16)
    with pytest.raises(ValueError, match=r"tensor tensor: expected values that fit into torch\.float16"):
        merge_tensors([large, sideways, flat], base=base, method="karcher")


def test_integer_tensors_must_be_equal() -> None:
    same = {"ids": torch.arange(4), "w": torch.zeros(2)}
    other = {"ids": torch.arange(4) + 1, "w": torch.zeros(2)}
    assert torch.equal(merge_state_dicts([same, dict(same)], method="linear")["ids"], torch.arange(4))
    with pytest.raises(ValueError, match=r"tensor ids: expected equal values"):
        merge_state_dicts([same, other], method="linear")


Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"v": s["v"]}, "input 1: .* lacks w"),
        (lambda s: s | {"x": s["v"]}, "input 1: .* adds x"),
        (lambda s: s | {"w": torch.zeros(3)}, r"input 1: tensor w: expected shape \[2\] as in input 0, got \[3\]"),
        (lambda s: s | {"w": torch.zeros(2).long()}, r"input 1: tensor w: expected torch\.float32 as in input 0"),
    ],
)
def test_state_dicts_that_do_not_agree_are_refused_by_name(change: Change, message: str) -> None:
    state = {"v": torch.ones(1), "w": torch.ones(2)}
    with pytest.raises(ValueError, match=message):
        merge_state_dicts([state, change(state)], method="linear")


def test_quantised_weights_are_refused() -> None:
    eight = torch.ones(2).to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match=r"tensor tensor: .*quantised"):
        merge_tensors([eight, eight], method="linear")


def test_a_state_dict_is_merged_tensor_by_tensor(tiny: dict[str, Tensor]) -> None:
    other = {name: x if not x.is_floating_point() else x.flip(0) if x.ndim else x + 1 for name, x in tiny.items()}
    merged = merge_state_dicts([tiny, other], method="slerp", t=0.3)
    assert merged.keys() == tiny.keys()
    for name, tensor in merged.items():
        assert torch.equal(tensor, merge_tensors([tiny[name], other[name]], method="slerp", t=0.3))
