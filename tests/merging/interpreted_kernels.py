"""Runs the kernels on the CPU through Triton's interpreter and prints, as JSON, how far they are from plain torch.

A program of its own: ``TRITON_INTERPRET`` is read when triton is imported, and the interpreter rewrites the
functions, which the checks of shapes during tests would wrap.
"""

import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import Tensor

from merging import plain_passes, triton_kernels
from merging.device import WindowGram, gram_on_device, sum_on_device
from merging.device_window import open_window
from merging.gram import Gram
from merging.solution import Solution

SHAPES = [(3, 50), (1,), (700,), (), (4, 64), (0, 8)]
"""Several chunks, a tail, whole blocks only, a single number, nothing."""

CHUNK, BLOCK = 512, 128

KERNELS = SimpleNamespace(
    measure=partial(triton_kernels.measure, block=BLOCK),
    add_up=triton_kernels.add_up,
    combine=partial(triton_kernels.combine, block=BLOCK),
)


def models(
    n: int, dtype: torch.dtype, shapes: Sequence[tuple[int, ...]] = SHAPES, *, seed: int = 0, at: int = 0
) -> list[list[Tensor]]:
    """For every shape n tensors that begin ``at`` elements into their storage."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for shape in shapes:
        size = max(1, int(torch.tensor(shape).prod()))
        rows = [torch.randn(at + size, generator=generator, dtype=torch.float64).to(dtype) for _ in range(n)]
        found.append([row[at:][: int(torch.tensor(shape).prod()) if shape else 1].view(shape) for row in rows])
    return found


def coefficients_for(gram: Gram, results: int) -> list[Solution]:
    """Arbitrary ones, the same for both ways."""
    groups, n = gram.norms.shape
    generator = torch.Generator().manual_seed(7)
    found = []
    for _ in range(results):
        values = torch.randn(groups, n, generator=generator, dtype=torch.float64)
        found.append(Solution(values))
    return found


def compare(
    inputs: list[list[Tensor]], bases: list[Tensor] | None, *, results: int = 1, dtype: Any = None, **cut: Any
) -> dict[str, float]:
    window = open_window(inputs, bases, chunk=CHUNK, **cut)
    ours, plain = (gram_on_device(window, passes=passes) for passes in (KERNELS, plain_passes))
    again = gram_on_device(window, passes=KERNELS)
    solutions = coefficients_for(plain.gram, results)
    merged, expected = (
        sum_on_device(window, plain, solutions, dtype=dtype, keep_equal=False, passes=passes)
        for passes in (KERNELS, plain_passes)
    )
    merged.check()
    scale = plain.gram.products.diagonal(dim1=1, dim2=2).amax(-1).clamp(min=1e-300)
    return {
        "truncated": float(any(tensor.dtype == torch.bfloat16 for tensor in merged.outputs[0])),
        "products": float(((ours.gram.products - plain.gram.products).abs().amax((1, 2)) / scale).max()),
        "angles": float((ours.gram.angles - plain.gram.angles).abs().nan_to_num().max()),
        "undefined": float((ours.gram.angles.isnan() != plain.gram.angles.isnan()).sum()),
        "equal": float((ours.equal != plain.equal).sum()),
        "repeats": float(not torch.equal(ours.gram.products, again.gram.products)),
        "values": max(
            _distance(a, b) for one, two in zip(merged.outputs, expected.outputs, strict=True)
            for a, b in zip(one, two, strict=True)
        ),
        "results": float(len(merged.outputs)),
    }  # fmt: skip


def _distance(ours: Tensor, plain: Tensor) -> float:
    assert ours.dtype == plain.dtype
    gap = (ours.double() - plain.double()).square().sum().sqrt()
    return float(gap / plain.double().square().sum().sqrt().clamp(min=1e-300))


def copies_bit_for_bit() -> dict[str, float]:
    """Equal inputs are copied, negative zeros too, and a base that is taken is the base."""
    first = torch.randn(600, dtype=torch.float32)
    first[:3] = torch.tensor([-0.0, 0.0, 1e-42])
    other, base = torch.randn(600), torch.randn(600)
    window = open_window([[first, first.clone()], [first, other]], [base, base], chunk=CHUNK)
    measured = gram_on_device(window, passes=KERNELS)
    solution = Solution(torch.full((2, 2), 0.3, dtype=torch.float64), take_base=torch.tensor([False, True]))
    (result,) = sum_on_device(window, measured, [solution], passes=KERNELS).outputs
    kept = sum_on_device(window, measured, [solution], keep_equal=False, passes=KERNELS).outputs[0][0]
    return {
        "copied": float(torch.equal(result[0].view(torch.int32), first.view(torch.int32))),
        "base": float(torch.equal(result[1].view(torch.int32), base.view(torch.int32))),
        "summed": float((kept - (base + 0.6 * (first - base))).abs().max()),
    }


def flags() -> dict[str, str]:
    """The messages for what cannot be merged."""
    found = {}
    good = torch.ones(600, dtype=torch.float16)
    for name, at, value in (("nan", 599, float("nan")), ("infinite", 0, float("inf"))):
        bad = good.clone()
        bad[at] = value
        found[name] = _refusal([[good, good * 2], [good, bad]], 0.5)
    found["overflow"] = _refusal([[good, good * 2], [good * 6e4, good * 5e4]], 1.0)
    return found


def _refusal(inputs: list[list[Tensor]], coefficient: float) -> str:
    window = open_window(inputs, names=["a", "b"], chunk=CHUNK)
    measured = gram_on_device(window, passes=KERNELS)
    half = Solution(torch.full((2, 2), coefficient, dtype=torch.float64))
    try:
        sum_on_device(window, measured, [half], passes=KERNELS).check()
    except ValueError as error:
        return str(error)
    return "accepted"


def cancelling_sum() -> dict[str, float]:
    """Nearly opposite inputs: large coefficients of opposite signs, where float32 terms would lose digits."""
    x = torch.randn(2000, dtype=torch.float32)
    y = (-x.double() + 1e-3 * torch.randn(2000, dtype=torch.float64)).float()
    window = open_window([[x, y]], chunk=CHUNK)
    measured: WindowGram = gram_on_device(window, passes=KERNELS)
    solution = Solution(torch.tensor([[700.0, 700.0]], dtype=torch.float64))
    got = sum_on_device(window, measured, [solution], passes=KERNELS).outputs[0][0].double()
    exact = 700 * (x.double() + y.double())
    return {"error": float((got - exact).norm() / exact.norm())}


def cases() -> dict[str, Any]:
    found: dict[str, Any] = {}
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
    for name, dtype in kinds.items():
        for with_base in (False, True):
            bases = [row[0] for row in models(1, dtype, seed=1)] if with_base else None
            found[f"{name}{'-base' if with_base else ''}"] = compare(models(2, dtype), bases)
    bases = [row[0] for row in models(1, torch.float32, seed=1)]
    found["one-input"] = compare(models(1, torch.float32), bases)
    found["five-inputs"] = compare(models(5, torch.float32, SHAPES[:2]), bases[:2])
    found["unaligned"] = compare(models(3, torch.bfloat16, at=1), None)
    found["three-results"] = compare(models(2, torch.bfloat16), None, results=3)
    found["nine-results"] = compare(models(2, torch.float32, SHAPES[:2]), None, results=9)
    found["narrower"] = compare(models(2, torch.float32), None, dtype=torch.float16)
    found["narrowest"] = compare(models(2, torch.float32), None, dtype=torch.bfloat16)
    found["mixed"] = compare(models(2, torch.float32) + models(2, torch.bfloat16, at=3), None)
    found["groups"] = compare(models(2, torch.float32), bases, groups=[1, 0, 1, 1, 2, 0])
    found["rows"] = compare(models(3, torch.float32), None, rows=True)
    found["copies"] = copies_bit_for_bit()
    found["flags"] = flags()
    found["cancelling"] = cancelling_sum()
    return found


if __name__ == "__main__":
    print(json.dumps(cases()))
