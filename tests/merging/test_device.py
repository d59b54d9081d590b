import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu_merge import main as benchmark
from benchmarks.gpu_merge import shapes, slerp_at
from merging import plain_passes
from merging.device import DeviceMerge, gram_on_device, merge_on_device, sum_on_device
from merging.device_window import open_window
from merging.gram import Gram
from merging.solution import Solution

SHAPES = [(5, 40), (), (300,), (2, 3, 4)]


def models(n: int, dtype: torch.dtype = torch.float32, seed: int = 0, device: str = "cpu") -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(shape, generator=generator).to(dtype).to(device) for _ in range(n)] for shape in SHAPES]


def fixed(*results: Sequence[float]) -> Callable[[Gram], list[Solution]]:
    """The same coefficients for every group."""

    def solve(gram: Gram) -> list[Solution]:
        rows = torch.tensor(results, dtype=torch.float64, device=gram.products.device)
        return [Solution(row.expand(len(gram.products), -1)) for row in rows]

    return solve


def arc(t: float) -> Callable[[Gram], list[Solution]]:
    """Shoemake's formula between two inputs, with the interpolated norm."""

    def solve(gram: Gram) -> list[Solution]:
        theta, norms = gram.angles[:, 0, 1], gram.norms
        shares = torch.stack([torch.sin((1 - t) * theta), torch.sin(t * theta)], 1) / torch.sin(theta)[:, None]
        length = (1 - t) * norms[:, 0] + t * norms[:, 1]
        return [Solution((shares * length[:, None] / norms).nan_to_num())]  # a single number may be antipodal

    return solve


def slerp(x: Tensor, y: Tensor, t: float) -> Tensor:
    x, y = x.double(), y.double()
    theta = torch.arccos((x * y).sum() / (x.norm() * y.norm()))
    unit = (torch.sin((1 - t) * theta) * x / x.norm() + torch.sin(t * theta) * y / y.norm()) / torch.sin(theta)
    return unit * ((1 - t) * x.norm() + t * y.norm())


@pytest.mark.parametrize("with_base", [False, True])
def test_slerp_is_that_of_float64(with_base: bool) -> None:
    inputs, bases = models(2), [row[0] for row in models(1, seed=1)]
    merged = merge_on_device(inputs, bases if with_base else None, arc(0.3))
    for (x, y), base, got in zip(inputs, bases, merged.outputs[0], strict=True):
        origin = base.double() if with_base else torch.zeros_like(base).double()
        if got.numel() > 1:
            expected = origin + slerp(x - origin, y - origin, 0.3)
            assert float((got - expected).norm() / expected.norm()) < 1e-6


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_gram_is_that_of_a_plain_loop(n: int, rows: bool) -> None:
    inputs, bases = models(n), [row[0] for row in models(1, seed=1)]
    measured = gram_on_device(open_window(inputs, bases, rows=rows), norm_bases=bases)
    place = 0
    for tensors, base in zip(inputs, bases, strict=True):
        cut = [tensor.reshape(len(tensor) if rows and tensor.dim() > 1 else 1, -1) for tensor in (*tensors, base)]
        for row in torch.stack(cut).double().movedim(1, 0):
            x = row[:-1] - row[-1]
            torch.testing.assert_close(measured.gram.products[place], x @ x.T)
            assert measured.gram.base_norms is not None
            torch.testing.assert_close(measured.gram.base_norms[place], row[-1].norm())
            place += 1
    assert place == len(measured.gram.products)
    assert measured.finite.all()


def test_groups_share_their_coefficients() -> None:
    inputs = models(2)
    seen: list[Gram] = []

    def solve(gram: Gram) -> list[Solution]:
        seen.append(gram)
        return [Solution(torch.tensor([[1.0, 0.0], [0.25, 0.75]], dtype=torch.float64))]

    bases = [row[0] for row in models(1, seed=1)]
    merged = merge_on_device(inputs, None, solve, groups=[1, 0, 1, 0], norm_bases=bases)
    first = torch.cat([torch.stack([x.flatten() for x in inputs[place]]) for place in (1, 3)], 1).double()
    torch.testing.assert_close(seen[0].products[0], first @ first.T)
    assert seen[0].base_norms is not None
    torch.testing.assert_close(
        seen[0].base_norms[0], torch.cat([bases[1].flatten(), bases[3].flatten()]).double().norm()
    )
    for place, group in enumerate((1, 0, 1, 0)):
        x, y = inputs[place]
        expected = x if group == 0 else 0.25 * x + 0.75 * y
        torch.testing.assert_close(merged.outputs[0][place], expected)


@pytest.mark.parametrize("theta", [1e-6, 1e-4, 0.3, torch.pi - 1e-3])
def test_angles_are_right_over_the_whole_range(theta: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, z = torch.randn(2, 4000, generator=generator, dtype=torch.float64)
    z = z - (z @ x) / (x @ x) * x
    turn = torch.tensor(theta, dtype=torch.float64)
    y = 10 * (turn.cos() * x / x.norm() + turn.sin() * z / z.norm())
    angle = float(gram_on_device(open_window([[x, y]])).gram.angles[0, 0, 1])
    assert angle == pytest.approx(theta, rel=1e-2 if theta < 1e-4 else 1e-6)


def test_equal_inputs_are_copied_and_have_no_angle() -> None:
    x = torch.randn(1000) * 1e-3
    x[0] = -0.0
    merged = merge_on_device([[x, x.clone(), x.clone()]], None, fixed([0.3, 0.3, 0.4]))
    assert torch.equal(merged.outputs[0][0].view(torch.int32), x.view(torch.int32))
    assert merged.angles.abs().max() == 0
    summed = merge_on_device([[x, x.clone(), x.clone()]], None, fixed([1, 1, 1]), keep_equal=False)
    torch.testing.assert_close(summed.outputs[0][0], 3 * x)


def test_a_base_that_is_taken_is_copied() -> None:
    inputs, bases = models(2), [row[0] for row in models(1, seed=1)]
    take = torch.tensor([True, False, True, False])

    def solve(gram: Gram) -> list[Solution]:
        return [Solution(torch.full((4, 2), 0.5, dtype=torch.float64), take_base=take)]

    merged = merge_on_device(inputs, bases, solve)
    same = [torch.equal(got, base) for got, base in zip(merged.outputs[0], bases, strict=True)]
    assert same == take.tolist()


def test_a_search_measures_once_and_repeats_the_sum() -> None:
    inputs = models(2, torch.bfloat16)
    window = open_window(inputs)
    measured = gram_on_device(window)
    steps = [(1 - t, t) for t in torch.linspace(0, 1, 11).tolist()]
    swept = sum_on_device(window, measured, fixed(*steps)(measured.gram), dtype=torch.float32)
    swept.check()
    for (a, b), result in zip(steps, swept.outputs, strict=True):
        for (x, y), got in zip(inputs, result, strict=True):
            torch.testing.assert_close(got, (a * x.double() + b * y.double()).float())


def test_results_go_where_they_are_asked_to() -> None:
    inputs = models(2, torch.float16)
    outputs = [[torch.empty_like(row[0], dtype=torch.bfloat16) for row in inputs]]
    merged = merge_on_device(inputs, None, fixed([0.5, 0.5]), outputs=outputs)
    assert merged.outputs is outputs
    for (x, y), got in zip(inputs, outputs[0], strict=True):
        assert torch.equal(got, ((x.float() + y.float()) / 2).bfloat16())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("where", "label"), [(0, "input 0"), (1, "input 1"), (2, "base")])
def test_values_that_are_not_finite_are_counted_and_named(value: float, where: int, label: str) -> None:
    inputs, bases = models(2), [row[0] for row in models(1, seed=1)]
    spoiled = [*inputs[2], bases[2]][where]
    spoiled[3:5] = value
    expected = f"^{label}: tensor c: expected finite values, got 2 that are NaN or infinite; train"
    with pytest.raises(ValueError, match=expected):
        merge_on_device(inputs, bases, fixed([0.5, 0.5]), names=list("abcd"))


def test_the_row_is_named() -> None:
    inputs = models(2)
    inputs[0][1][4, 0] = float("nan")
    with pytest.raises(ValueError, match="input 1: tensor a, row 4: expected finite values, got 1"):
        merge_on_device(inputs, None, fixed([0.5, 0.5]), names=list("abcd"), rows=True)


def test_a_value_that_the_dtype_cannot_hold_is_refused() -> None:
    inputs = models(2, torch.float16)
    inputs[2][0][:7] = 6e4
    with pytest.raises(ValueError, match=r"tensor c: expected values that fit into torch.float16, got 7 that do not; "):
        merge_on_device(inputs, None, fixed([2, 0]), names=list("abcd"))


def test_a_group_without_a_mean_is_refused_with_the_reason() -> None:
    def solve(gram: Gram) -> list[Solution]:
        refused = torch.tensor([False, False, True, False])
        return [Solution(torch.full((4, 2), 0.5, dtype=torch.float64), refused=refused, reason="expected a, got b; c")]

    with pytest.raises(ValueError, match="^tensor c: expected a, got b; c$"):
        merge_on_device(models(2), None, solve, names=list("abcd"))


def test_tensors_that_do_not_match_are_named() -> None:
    x = torch.zeros(4, 6)
    for inputs, expected in (
        ([[x, x], [x]], "tensor b: expected 2 inputs, got 1"),
        ([[x, x], [x, x.T.contiguous()]], r"tensor b: expected shape \(4, 6\) in all models, got \(6, 4\)"),
        ([[x, x], [x, x.half()]], "tensor b: expected one dtype in all inputs, got torch.float16, torch.float32"),
        ([[x, x], [x.int(), x.int()]], "tensor b: expected float16, bfloat16, float32 or float64, got torch.int32"),
        ([[x, x], [x.view(6, 4).T, x.view(6, 4).T]], "tensor b: expected contiguous values on cpu, got strides"),
        ([[x, x], [x, x.to("meta")]], "tensor b: expected contiguous values on cpu, got meta"),
    ):
        with pytest.raises(ValueError, match=expected):
            open_window(inputs, names=["a", "b"])


def test_an_output_of_another_shape_is_refused() -> None:
    x = torch.ones(4, 6)
    window = open_window([[x, 2 * x]], names=["a"])
    measured = gram_on_device(window)
    with pytest.raises(ValueError, match=r"tensor a: expected an output of shape \(4, 6\), got \(24,\)"):
        sum_on_device(window, measured, fixed([1, 0])(measured.gram), outputs=[[x.view(-1)]])


class Asking(TorchDispatchMode):
    """Notes the operations that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            isinstance(part, Tensor) and part.dtype == torch.bool
            for index in args[1:2]
            if isinstance(index, (list, tuple))
            for part in index
        )
        # lift_fresh is torch.tensor(...): a copy from memory that is not pinned.
        if by_mask or name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "lift_fresh"):
            self.noted.append(name)
        return function(*args, **(kwargs or {}))


def test_between_the_passes_nothing_waits_for_the_device() -> None:
    window = open_window(models(2), [row[0] for row in models(1, seed=1)], groups=[0, 1, 1, 2])
    sums = plain_passes.measure(window)
    members = torch.zeros(3, 4, dtype=torch.float64).index_copy_(0, torch.arange(3), torch.rand(3, 4).double())
    passes = SimpleNamespace(
        measure=lambda window: sums,
        add_up=lambda rows, bounds, count: members,
        combine=lambda window, coefficients, copies, wide, outputs: torch.zeros(4, dtype=torch.int32),
    )
    with Asking() as asking:
        measured = gram_on_device(window, passes=passes)
        solutions = [slerp_at(0.3)(measured.gram)[0], *fixed([0.5, 0.5])(measured.gram)]
        merged = sum_on_device(window, measured, solutions, passes=passes)
        asked = list(asking.noted)
        merged.check()
    # The coefficients that this test makes up are a list, once.
    assert asked == ["lift_fresh"]
    assert asking.noted[1:] == ["_local_scalar_dense"]


def test_nothing_is_merged_into_nothing() -> None:
    merged = merge_on_device([], None, lambda gram: [Solution(gram.norms)])
    assert merged.outputs == [[]]


def test_the_benchmark_for_a_gpu_runs_scaled_down(tmp_path: Path) -> None:
    flags = ["--device", "cpu", "--shrink", "256", "--repeats", "1", "--output", str(tmp_path / "found.json")]
    assert benchmark(flags) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["parameters"] == sum(math.prod(shape) for shape in shapes(256).values())
    assert found["share_of_copy_bandwidth"] == pytest.approx(
        found["merge_bytes_per_second"] / found["copy_bytes_per_second"]
    )
    assert set(found["profiler"]) == {"launches", "synchronisations", "own_kernels"}


def test_the_benchmark_is_shaped_as_qwen3_8b() -> None:
    assert sum(math.prod(shape) for shape in shapes(1).values()) == 8_190_735_360 - 4096  # without the last norm


# On a GPU: the kernels against the passes in plain torch on the CPU, and what the profiler counts.


def on_gpu(inputs: list[list[Tensor]]) -> list[list[Tensor]]:
    return [[tensor.cuda() for tensor in row] for row in inputs]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("n", [2, 5])
def test_a_gpu_agrees_with_a_cpu(n: int, with_base: bool, dtype: torch.dtype) -> None:
    inputs, bases = models(n, dtype), [row[0] for row in models(1, dtype, seed=1)]
    inputs.append([torch.randn(1000, 1001).to(dtype) for _ in range(n)])
    bases.append(torch.randn(1000, 1001).to(dtype))
    coefficients = fixed([0.7] + [0.1] * (n - 1), [1 / n] * n)
    moved = [base.cuda() for base in bases]
    merges: list[DeviceMerge] = [
        merge_on_device(tensors, origin if with_base else None, coefficients, dtype=torch.float32)
        for tensors, origin in ((inputs, bases), (on_gpu(inputs), moved), (on_gpu(inputs), moved))
    ]
    plain, ours, again = merges
    torch.testing.assert_close(ours.products.cpu(), plain.products, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.angles.cpu(), plain.angles, rtol=1e-9, atol=1e-9)
    assert torch.equal(ours.products, again.products)
    for one, two, three in zip(ours.outputs, plain.outputs, again.outputs, strict=True):
        for a, b, c in zip(one, two, three, strict=True):
            assert float((a.cpu() - b).norm() / b.norm()) < 1e-6
            assert torch.equal(a, c)


@pytest.mark.gpu
def test_a_gpu_rounds_to_the_nearest_bfloat16() -> None:
    inputs = [[torch.randn(5000) for _ in range(2)]]
    (got,) = merge_on_device(on_gpu(inputs), None, fixed([1, 0]), dtype=torch.bfloat16).outputs[0]
    assert torch.equal(got.cpu(), inputs[0][0].bfloat16())


@pytest.mark.gpu
def test_a_window_synchronises_once() -> None:
    inputs = on_gpu(models(2) * 50)
    merge_on_device(inputs, None, fixed([0.5, 0.5]))

    def enqueue() -> DeviceMerge:
        window = open_window(inputs)
        measured = gram_on_device(window)
        half = torch.full_like(measured.gram.norms, 0.5)
        return sum_on_device(window, measured, [Solution(half)])

    torch.cuda.set_sync_debug_mode("error")
    try:
        merged = enqueue()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    merged.check()


@pytest.mark.gpu
def test_a_tensor_beyond_2_gib() -> None:
    size = 2**30 + 2**28 + 7
    x = torch.ones(size, dtype=torch.bfloat16, device="cuda")
    y = torch.full_like(x, 3)
    (got,) = merge_on_device([[x, y]], None, fixed([0.5, 0.5])).outputs[0]
    assert bool((got == 2).all())
