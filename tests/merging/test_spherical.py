import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor

from merging.gram import Gram
from merging.hierarchical import hierarchical_slerp, sequential_slerp
from merging.linear import norm_matched
from merging.methods import METHODS
from merging.options import Options
from merging.solution import Solution
from merging.spherical import karcher, slerp
from merging.task_arithmetic import warp
from tests.merging import oracle

SOLVERS = {
    name: solver
    for row in METHODS.values()
    if row.kind == "coefficients" and row.maximum != 1
    for name, solver in {
        row.name: row.function,
        **({f"{row.name} as mergekit": row.compat_function} if row.compat else {}),
    }.items()
}


def shares(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def pair_at(theta: float, ratio: float = 1.0, size: int = 40) -> Tensor:
    """Two vectors at ``theta``, the second ``ratio`` times as long as the first."""
    u, v = torch.randn(2, size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    u = u / u.norm()
    v = v - (v @ u) * u
    return torch.stack([u, ratio * (math.cos(theta) * u + math.sin(theta) * v / v.norm())])


def merged(solution: Solution, vectors: Tensor) -> Tensor:
    return solution.coefficients[0] @ vectors


def told(solution: Solution) -> list[str]:
    """The notes on the first group."""
    return [note for note, mask in solution.notes.items() if bool(mask[0])]


@pytest.mark.parametrize("t", [-0.2, 0.0, 0.1, 0.5, 1.0, 1.3])
@pytest.mark.parametrize("ratio", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("theta", [1e-6, 1e-5, 1e-3, 0.1, math.pi / 2, 3.0, math.pi - 1.001e-3])
def test_slerp_is_the_formula_on_whole_vectors(theta: float, ratio: float, t: float) -> None:
    vectors = pair_at(theta, ratio)
    solution = slerp(oracle.gram_of(vectors), shares(1 - t, t), Options())
    assert oracle.relative_error(merged(solution, vectors), oracle.slerp(*vectors, t)) < 1e-10
    assert told(solution) == []
    assert not bool(solution.refused)


@given(theta=st.floats(1e-6, math.pi - 1e-3, exclude_max=True), t=st.floats(-0.5, 1.5), log_ratio=st.floats(-1.0, 1.0))
def test_slerp_at_any_angle_position_and_ratio(theta: float, t: float, log_ratio: float) -> None:
    vectors = pair_at(theta, 10**log_ratio)
    gram = oracle.gram_of(vectors)
    assume(math.pi - float(gram.angles[0, 0, 1]) >= 1e-3)
    got = merged(slerp(gram, shares(1 - t, t), Options(norm="geometric")), vectors)
    assert oracle.relative_error(got, oracle.slerp(*vectors, t, "geometric")) < 1e-9


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_the_ends_of_the_arc_are_the_inputs_exactly(t: float) -> None:
    for theta in (1e-9, 1.0, math.pi):
        coefficients = slerp(oracle.gram_of(pair_at(theta, 3.0)), shares(1 - t, t), Options()).coefficients
        assert torch.equal(coefficients, shares(1 - t, t))


@given(count=st.integers(3, 8), seed=st.integers(0, 9999), spread=st.sampled_from([1e-6, 1e-3, 0.1, 0.5, 1.0, 3.0]))
def test_karcher_is_where_the_pulls_of_the_inputs_cancel(count: int, seed: int, spread: float) -> None:
    vectors, weights = oracle.scattered(count, spread, seed)
    solution = karcher(oracle.gram_of(vectors), weights, Options())
    assume(told(solution) == [])
    mean = merged(solution, vectors)
    assert not bool(solution.refused)
    assert float(oracle.pull(list(vectors), weights[0].tolist(), mean).norm()) < 1e-10
    assert float(mean.norm()) == pytest.approx(oracle.length(list(vectors), weights[0].tolist()), rel=1e-12)


@pytest.mark.parametrize("spread", [1e-6, 1e-2, 0.2, 0.35])
@pytest.mark.parametrize("count", range(3, 9))
def test_karcher_is_the_iteration_on_whole_vectors(count: int, spread: float) -> None:
    vectors, weights = oracle.scattered(count, spread, seed=count, size=30)
    solution = karcher(oracle.gram_of(vectors), weights, Options())
    assert told(solution) == []
    expected = oracle.karcher(list(vectors), weights[0].tolist())
    assert oracle.relative_error(merged(solution, vectors), expected) < 1e-9


def test_karcher_arrives_where_the_inputs_lie_a_degree_short_of_ninety_from_their_mean() -> None:
    tilt = math.radians(89)
    around = torch.arange(5, dtype=torch.float64) * 2 * math.pi / 5
    ring = [torch.full_like(around, math.cos(tilt)), math.sin(tilt) * around.cos(), math.sin(tilt) * around.sin()]
    vectors = torch.stack(ring, -1)
    solution = karcher(oracle.gram_of(vectors), torch.full((1, 5), 0.2, dtype=torch.float64), Options())
    torch.testing.assert_close(merged(solution, vectors), torch.tensor([1.0, 0, 0]).double(), rtol=0, atol=1e-12)
    assert told(solution) == []


@given(order=st.permutations(range(6)), seed=st.integers(0, 99))
def test_karcher_does_not_depend_on_the_order(order: Sequence[int], seed: int) -> None:
    vectors, weights = oracle.scattered(6, 0.7, seed)
    expected = merged(karcher(oracle.gram_of(vectors), weights, Options()), vectors)
    got = merged(karcher(oracle.gram_of(vectors[order]), weights[:, order], Options()), vectors[order])
    assert oracle.relative_error(got, expected) < 1e-12


@given(theta=st.floats(1e-6, math.pi - 1.001e-3), t=st.floats(0, 1), log_ratio=st.floats(-1, 1))
@example(theta=math.pi - 1.001e-3, t=0.3, log_ratio=1.0)
def test_of_two_inputs_all_spherical_means_are_slerp(theta: float, t: float, log_ratio: float) -> None:
    gram, weights = oracle.gram_of(pair_at(theta, 10**log_ratio)), shares(1 - t, t)
    expected = slerp(gram, weights, Options()).coefficients
    for method in (karcher, hierarchical_slerp, sequential_slerp):
        torch.testing.assert_close(method(gram, weights, Options()).coefficients, expected, rtol=1e-12, atol=0)


@given(theta=st.floats(1e-6, math.pi - 1.001e-3), t=st.floats(0.05, 0.95))
@example(theta=math.pi - 1.001e-3, t=0.3)
@pytest.mark.parametrize("method", [karcher, hierarchical_slerp, sequential_slerp])
def test_of_three_inputs_with_a_silent_one_they_are_slerp_too(method: type, theta: float, t: float) -> None:
    pair = pair_at(theta)
    trio, weights = torch.stack([pair[0], -pair[1], pair[1]]), shares(1 - t, 0.0, t)
    expected = slerp(oracle.gram_of(pair), shares(1 - t, t), Options()).coefficients
    got = method(oracle.gram_of(trio), weights, Options()).coefficients
    torch.testing.assert_close(got[:, [0, 2]], expected, rtol=1e-12, atol=0)


def hard_groups(count: int) -> tuple[Gram, Tensor]:
    """300 groups of every kind: close, wide, with zeros, parallel, antipodal, balanced, of weight zero."""
    kinds: list[Tensor] = []
    for seed in range(300):
        vectors, _ = oracle.scattered(count, [1e-5, 0.3, 1.0, 30.0][seed % 4], seed, size=4)
        if seed % 7 == 0:
            vectors[seed % count] = 0
        if seed % 11 == 0:
            vectors[:] = 0
        if seed % 13 == 0:
            vectors[1:] = vectors[0]
        if seed % 17 == 0:
            vectors[-1] = -2 * vectors[0]
        kinds.append(vectors)
    stacked = torch.stack(kinds)
    weights = torch.rand(300, count, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.01
    weights[::19, 0] = 0
    weights[5::23, 0] = -0.2
    gram = oracle.gram_of(*kinds, base_norms=stacked.flatten(1).norm(dim=1))
    return gram, weights / weights.sum(-1, keepdim=True)


@pytest.fixture(scope="module", params=[2, 3, 5])
def crowd(request: pytest.FixtureRequest) -> tuple[Gram, Tensor]:
    return hard_groups(request.param)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_group_does_not_depend_on_those_that_share_its_batch(name: str, crowd: tuple[Gram, Tensor]) -> None:
    gram, weights = crowd
    maximum = METHODS[name.split()[0]].maximum
    if maximum is not None and weights.shape[1] > maximum:
        gram, weights = Gram(gram.products[:, :2, :2], gram.angles[:, :2, :2], gram.base_norms), weights[:, :2]
    options = Options(norm="geometric", antipodal="linear", scale=0.7)
    together = SOLVERS[name](gram, weights, options)
    assert gram.base_norms is not None
    for k in range(0, 300, 5):
        one = slice(k, k + 1)
        lone = Gram(gram.products[one], gram.angles[one], gram.base_norms[one])
        alone = SOLVERS[name](lone, weights[one], options)
        assert torch.equal(alone.coefficients, together.coefficients[one])
        assert {note: bool(mask) for note, mask in alone.notes.items()} == {
            note: bool(mask[k]) for note, mask in together.notes.items()
        }
    assert bool(together.coefficients.isfinite().all())


@pytest.mark.parametrize("policy", ["error", "linear", "base"])
@pytest.mark.parametrize("name", SOLVERS)
def test_nothing_is_asked_of_the_host(name: str, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device every question about a value is an error."""
    monkeypatch.setattr("merging.spherical.STEPS", 2)
    n = METHODS[name.split()[0]].maximum or 4
    gram = Gram(torch.empty(3, n, n, dtype=torch.float64, device="meta"), torch.empty(3, n, n).double().to("meta"))
    weights = torch.empty(3, n, dtype=torch.float64, device="meta")
    solution = SOLVERS[name](gram, weights, Options(antipodal=policy))  # type: ignore[arg-type]
    assert solution.coefficients.shape == (3, n)
    assert solution.coefficients.device.type == "meta"


@pytest.mark.parametrize("t", [-0.3, 0.0, 0.25, 1.0, 1.3])
@pytest.mark.parametrize("method", [slerp, karcher, hierarchical_slerp, sequential_slerp, norm_matched])
def test_a_zero_input_makes_two_linear(method: type, t: float) -> None:
    vectors = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    for swapped in (False, True):
        both, weights = (vectors.flip(0), shares(t, 1 - t)) if swapped else (vectors, shares(1 - t, t))
        solution = method(oracle.gram_of(both), weights, Options())
        torch.testing.assert_close(merged(solution, both), t * vectors[1], rtol=1e-14, atol=1e-15)
        assert told(solution) == {0: ["zero"], 1: []}.get(t, ["zero input"])


@pytest.mark.parametrize("method", [karcher, hierarchical_slerp, sequential_slerp])
def test_a_zero_input_leaves_the_direction_and_stays_in_the_length(method: type) -> None:
    vectors, weights = oracle.scattered(3, 0.8, seed=4)
    with_zero = torch.cat([vectors[:1], torch.zeros(1, 9, dtype=torch.float64), vectors[1:]])
    more = torch.cat([weights[:, :1] * 0.6, shares(0.4), weights[:, 1:] * 0.6], -1)
    without = merged(method(oracle.gram_of(vectors), weights, Options()), vectors)
    solution = method(oracle.gram_of(with_zero), more, Options())
    if method is not hierarchical_slerp:  # whose pairs are others without it
        torch.testing.assert_close(merged(solution, with_zero), 0.6 * without, rtol=1e-12, atol=1e-14)
    assert float(merged(solution, with_zero).norm()) == pytest.approx(0.6 * float(without.norm()), rel=1e-12)
    assert told(solution) == ["zero input"]


@pytest.mark.parametrize("method", [slerp, karcher, hierarchical_slerp, sequential_slerp, norm_matched, warp])
def test_where_all_inputs_are_zero_the_weights_stay(method: type) -> None:
    solution = method(oracle.gram_of(torch.zeros(2, 3)), shares(0.25, 0.75), Options())
    assert torch.equal(solution.coefficients, shares(0.25, 0.75))
    assert told(solution) == ["zero"]
    assert not bool(solution.refused)


@pytest.mark.parametrize("norm", ["interpolate", "geometric"])
@pytest.mark.parametrize("method", [karcher, sequential_slerp, norm_matched])
def test_an_input_of_weight_zero_has_no_say(method: type, norm: str) -> None:
    options = Options(norm=norm)  # type: ignore[arg-type]
    vectors, weights = oracle.scattered(3, 0.8, seed=8)
    for silent in (-vectors[:1], torch.zeros_like(vectors[:1])):
        others = torch.cat([vectors, silent])
        solution = method(oracle.gram_of(others), torch.cat([weights, shares(0.0)], -1), options)
        without = method(oracle.gram_of(vectors), weights, options)
        torch.testing.assert_close(solution.coefficients[:, :3], without.coefficients, rtol=1e-13, atol=0)
        assert float(solution.coefficients[0, 3]) == 0
        assert told(solution) == []


def test_inputs_beyond_ninety_degrees_of_the_mean_of_three_or_more_are_reported() -> None:
    wide = torch.tensor([[math.cos(x), math.sin(x)] for x in (0.0, 0.1, 1.9)], dtype=torch.float64)
    solution = karcher(oracle.gram_of(wide), shares(0.49, 0.49, 0.02), Options())
    assert told(solution) == ["not unique"]
    assert told(slerp(oracle.gram_of(wide[[0, 2]]), shares(0.98, 0.02), Options())) == []
    assert told(karcher(oracle.gram_of(wide), shares(0.98, 0.0, 0.02), Options())) == []


@pytest.mark.parametrize("method", [slerp, karcher, hierarchical_slerp, sequential_slerp, warp])
def test_a_step_short_of_antipodal_is_merged_and_a_step_beyond_follows_the_policy(method: type) -> None:
    weights = shares(0.5, 0.5)
    short, beyond = (oracle.gram_of(pair_at(math.pi - gap)) for gap in (1.1e-3, 0.9e-3))
    assert not bool(method(short, weights, Options()).refused)
    refused = method(beyond, weights, Options())
    assert bool(refused.refused)
    assert "--antipodal linear or base" in refused.reason
    linear = method(beyond, weights, Options(antipodal="linear"))
    assert torch.equal(linear.coefficients, weights)
    assert told(linear) == ["antipodal: linear"]
    base = method(beyond, weights, Options(antipodal="base"))
    assert bool(base.take_base)
    assert not base.coefficients.any()
    assert told(base) == ["antipodal: base"]


def test_inputs_that_balance_have_no_mean() -> None:
    corners = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)
    around = torch.tensor([[math.cos(x), math.sin(x)] for x in (0, 2 * math.pi / 3, -2 * math.pi / 3)]).double()
    for vectors in (corners, around):
        weights = torch.full((1, len(vectors)), 1 / len(vectors), dtype=torch.float64)
        assert bool(karcher(oracle.gram_of(vectors), weights, Options()).refused)


@pytest.mark.parametrize("method", [slerp, karcher, hierarchical_slerp, sequential_slerp, norm_matched, warp])
@pytest.mark.parametrize(
    ("norm", "expected"), [("interpolate", 0.25 * 1 + 0.75 * 4), ("geometric", 4**0.75), ("base", 7.0)]
)
def test_the_norm_rule_sets_the_length_and_not_the_direction(method: type, norm: str, expected: float) -> None:
    vectors = pair_at(1.0, ratio=4.0)
    gram = oracle.gram_of(vectors, base_norms=torch.tensor([7.0], dtype=torch.float64))
    got = merged(method(gram, shares(0.25, 0.75), Options(norm=norm)), vectors)  # type: ignore[arg-type]
    plain = merged(method(gram, shares(0.25, 0.75), Options()), vectors)
    assert float(got.norm()) == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(got / got.norm(), plain / plain.norm(), rtol=1e-12, atol=1e-14)


def test_an_extrapolated_length_goes_on_through_zero_as_the_linear_one_does() -> None:
    vectors = pair_at(1e-9, ratio=10.0)
    for method in (slerp, norm_matched):
        got = merged(method(oracle.gram_of(vectors), shares(1.2, -0.2), Options()), vectors)
        torch.testing.assert_close(got, oracle.linear(list(vectors), [1.2, -0.2]), rtol=1e-7, atol=1e-9)


@given(seed=st.integers(0, 999), negative=st.floats(0.01, 0.3), count=st.integers(3, 6))
def test_with_a_negative_weight_the_pulls_cancel_too(seed: int, negative: float, count: int) -> None:
    vectors, weights = oracle.scattered(count, 0.2, seed)
    weights = torch.cat([shares(-negative), weights[:, 1:] / weights[:, 1:].sum() * (1 + negative)], -1)
    solution = karcher(oracle.gram_of(vectors), weights, Options(norm="geometric"))
    assert not bool(solution.refused)
    assert float(oracle.pull(list(vectors), weights[0].tolist(), merged(solution, vectors)).norm()) < 1e-10


@pytest.mark.parametrize("method", [karcher, hierarchical_slerp, sequential_slerp])
def test_weights_of_both_signs_that_leave_no_direction_are_refused(method: type) -> None:
    vectors = torch.stack([*pair_at(1.0), torch.zeros(40, dtype=torch.float64)])
    solution = method(oracle.gram_of(vectors), shares(0.5, -0.5, 1.0), Options())
    assert bool(solution.refused)
    assert "weights outside [0, 1]" in solution.reason


def test_a_zero_input_of_negative_weight_has_no_geometric_length() -> None:
    vectors = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    for method in (slerp, norm_matched):
        assert bool(method(oracle.gram_of(vectors), shares(-0.5, 1.5), Options(norm="geometric")).refused)
