"""Merging tensors that are on one device already, all of a window at once.

Two passes over the weights, each one launch whatever the number of tensors, and between them coefficients
for all groups on the device.  Nothing waits for the device until :meth:`DeviceMerge.check` asks it once
whether all went well.  Several results (values of ``t``) come from one pass, and a search measures once and
repeats the sum:

>>> def halfway(gram):
...     half = torch.full(gram.norms.shape, 0.5, dtype=torch.float64, device=gram.products.device)
...     return [Solution(half)]
>>> merge_on_device([[torch.tensor([1.0, 3.0]), torch.tensor([3.0, 5.0])]], None, halfway).outputs
[[tensor([2., 4.])]]

Dimensions: g groups, n inputs, r runs (see ``merging.ragged``), p pairs of inputs, t results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float64, Int32, Int64
from torch import Tensor

from merging import plain_passes
from merging.device_window import Window, check_outputs, open_window
from merging.gram import Gram, angles_of
from merging.solution import Solution

Solve = Callable[[Gram], Sequence[Solution]]
"""Coefficients for all groups, one solution for each result wanted; on CUDA without waiting for the device."""


@runtime_checkable
class Passes(Protocol):
    """The two passes: ``merging.triton_kernels`` or ``merging.plain_passes``, where the functions are described."""

    def measure(self, window: Window, /) -> Float64[Tensor, "r p 4"]: ...

    def add_up(
        self, rows: Float64[Tensor, "m width"], bounds: Int64[Tensor, " _"], count: int, /
    ) -> Float64[Tensor, "_ width"]: ...

    def combine(
        self,
        window: Window,
        coefficients: Float64[Tensor, "t r n"],
        copies: Int32[Tensor, "t r"],
        wide: Int32[Tensor, " r"],
        outputs: Sequence[Sequence[Tensor]],
        /,
    ) -> Int32[Tensor, " r"]: ...


RESULTS = 8
"""Results of one launch; more of them read the inputs again."""

CANCELLING = 4.0
"""A sum whose terms are longer than it by this factor is formed in float64 throughout."""

LARGE = 1e30
"""So is one of inputs above this norm: in float32 a term might overflow where the sum does not."""


@dataclass(frozen=True)
class WindowGram:
    """What the first pass found out."""

    gram: Gram
    equal: Bool[Tensor, " r"]
    """Runs in which all inputs hold the same values."""
    finite: Bool[Tensor, " r"]
    """Runs without NaN and infinity."""


@dataclass(frozen=True)
class DeviceMerge:
    """The results, and the flags that say whether they may be used."""

    window: Window
    measured: WindowGram
    solutions: Sequence[Solution]
    outputs: Sequence[Sequence[Tensor]]
    """For every solution, a tensor for each of the window's."""
    overflows: Int32[Tensor, " r"]
    """1 for runs with a value that the dtype of the result cannot hold."""

    @property
    def products(self) -> Float64[Tensor, "g n n"]:
        return self.measured.gram.products

    @property
    def angles(self) -> Float64[Tensor, "g n n"]:
        return self.measured.gram.angles

    def check(self) -> None:
        """Wait for the device, once, and raise if a tensor could not be merged.

        Raises:
            ValueError: an input holds NaN or infinity, the inputs of a group have no mean, or a value does
                not fit into the dtype of the result; tensor and count are named.
        """
        runs, groups = self.window.ragged.runs, self.window.ragged.group_count
        none = torch.zeros(groups, dtype=torch.bool, device=self.window.device)
        refused = [none if one.refused is None else one.refused for one in self.solutions]
        flags = torch.cat([~self.measured.finite, self.overflows != 0, *refused]).cpu()
        if not bool(flags.any()):
            return
        spoiled, overflowing, *without_mean = torch.split(flags, [runs, runs, *(groups for _ in refused)])
        for run in spoiled.nonzero().flatten().tolist():
            raise ValueError(_non_finite_message(self.window, run))
        for solution, mask in zip(self.solutions, without_mean, strict=True):
            for group in mask.nonzero().flatten().tolist():
                name = self.window.label(int(self.window.ragged.members[group]))
                raise ValueError(f"tensor {name}: {solution.reason}")
        for run in overflowing.nonzero().flatten().tolist():
            raise ValueError(_overflow_message(self.window, run, self.outputs))


def merge_on_device(
    inputs: Sequence[Sequence[Tensor]],
    bases: Sequence[Tensor] | None,
    solve: Solve,
    *,
    outputs: Sequence[Sequence[Tensor]] | None = None,
    names: Sequence[str] | None = None,
    groups: Sequence[int] | None = None,
    rows: bool = False,
    norm_bases: Sequence[Tensor] | None = None,
    keep_equal: bool = True,
    dtype: torch.dtype | None = None,
) -> DeviceMerge:
    """Merge the tensors of one device and wait for the result.

    Args:
        inputs: for every tensor its n inputs, of one shape and a floating-point dtype, contiguous.
        bases: for every tensor what task vectors are taken from; None merges the weights themselves.
        solve: gives the coefficients, one solution for each result.
        outputs: for every result, a tensor for each of ``inputs`` to write into; allocated by default.
        names: of the tensors, for messages.
        groups: the group of each tensor, counted from 0 without gaps; by default each is its own.
        rows: each row of a tensor is a group of its own; a vector is one row.
        norm_bases: for every tensor the base whose norm ``gram.base_norms`` is to hold.
        keep_equal: copy a tensor that all inputs agree on, as an average would; not for weights that do
            not sum to 1.
        dtype: of the results; that of the inputs by default.

    Raises:
        ValueError: tensors do not match, values are not finite, a group has no mean, or a value does not fit
            into the dtype; the tensor is named.
    """
    window = open_window(inputs, bases, names=names, groups=groups, rows=rows)
    measured = gram_on_device(window, norm_bases=norm_bases)
    merged = sum_on_device(
        window, measured, solve(measured.gram), outputs=outputs, keep_equal=keep_equal, dtype=dtype
    )  # fmt: skip
    merged.check()
    return merged


def gram_on_device(
    window: Window, *, norm_bases: Sequence[Tensor] | None = None, passes: Passes | None = None
) -> WindowGram:
    """Measure the inputs of a window: products, angles, whether they are equal and finite.  Waits for nothing.

    Angles are right to 1 % from 1e-6 rad up, and to 1e-7 (relative) from 1e-4 rad up; those of equal inputs are 0.

    Args:
        window: the tensors.
        norm_bases: for every tensor the base whose norm ``gram.base_norms`` is to hold.
        passes: who makes the passes; by default the kernels where they can run.
    """
    passes = _passes_for(window.device) if passes is None else passes
    per_run = passes.measure(window)
    sums = _by_group(window, per_run, passes)
    flat = sums.flatten(1)
    products = flat[:, window.cells]
    # The fourth sum of a pair counts the elements that differ: without any, the angle is 0 and not its rounding error.
    same = flat[:, window.cells | 3] == 0
    angles = angles_of(products)
    angles = angles.masked_fill(same & ~angles.isnan(), 0.0)
    base_norms = None
    if norm_bases is not None:
        alone = _same_cut(window, [[base] for base in norm_bases])
        base_norms = _by_group(alone, passes.measure(alone), passes)[:, 0, 0].sqrt()
    equal = (per_run[..., 3] == 0).all(1)
    return WindowGram(Gram(products, angles, base_norms), equal, per_run[..., :3].isfinite().all(2).all(1))


def sum_on_device(
    window: Window,
    measured: WindowGram,
    solutions: Sequence[Solution],
    *,
    outputs: Sequence[Sequence[Tensor]] | None = None,
    keep_equal: bool = True,
    dtype: torch.dtype | None = None,
    passes: Passes | None = None,
) -> DeviceMerge:
    """Write the weighted sums of all solutions in one pass.  Waits for nothing: call ``check`` before they are used.

    In task-vector space, groups that take the base get its values bit for bit; in weight space their
    coefficients must say so themselves.  See :func:`merge_on_device` for the arguments.
    """
    passes = _passes_for(window.device) if passes is None else passes
    if outputs is None:
        outputs = [[torch.empty_like(row[0], dtype=dtype) for row in window.inputs] for _ in solutions]
    assert len(outputs) == len(solutions), "one list of outputs for each solution"
    check_outputs(window, outputs)
    overflows = torch.zeros(window.ragged.runs, dtype=torch.int32, device=window.device)
    for first in range(0, len(solutions), RESULTS):
        some = solutions[first : first + RESULTS]
        coefficients = torch.stack([one.coefficients for one in some])[:, window.owners].contiguous()
        copies = torch.stack([_copies(window, measured, one, keep_equal) for one in some])
        wide = _needs_float64(measured.gram, some)[window.owners].to(torch.int32)
        overflows |= passes.combine(window, coefficients, copies, wide, outputs[first : first + RESULTS])
    return DeviceMerge(window, measured, solutions, outputs, overflows)


def _passes_for(device: torch.device) -> Passes:
    """Return the kernels where they can run, else the passes in plain torch."""
    if device.type == "cuda" and find_spec("triton") is not None:
        from merging import triton_kernels

        return triton_kernels
    return plain_passes


def _same_cut(window: Window, inputs: Sequence[Sequence[Tensor]]) -> Window:
    """Return a window of other tensors that is cut in the same groups."""
    ragged = window.ragged
    groups = None if window.rows else ragged.groups[ragged.tensors.argsort()].tolist()
    return open_window(inputs, names=window.names, groups=groups, rows=window.rows, chunk=ragged.chunk)


def _by_group(window: Window, per_run: Float64[Tensor, "r p 4"], passes: Passes) -> Float64[Tensor, "g p 4"]:
    ragged = window.ragged
    if ragged.group_count == ragged.runs:
        return per_run
    return passes.add_up(per_run.flatten(1), window.members, ragged.group_count).reshape(ragged.group_count, -1, 4)


def _copies(window: Window, measured: WindowGram, solution: Solution, keep_equal: bool) -> Int32[Tensor, " r"]:
    """Return what each run is a copy of: an input, n for the base, or -1."""
    copies = torch.full((window.ragged.runs,), -1, dtype=torch.int32, device=window.device)
    if keep_equal:
        copies = copies.masked_fill(measured.equal, 0)
    if solution.take_base is not None and window.bases is not None:
        copies = copies.masked_fill(solution.take_base[window.owners], window.n)
    return copies


def _needs_float64(gram: Gram, solutions: Sequence[Solution]) -> Bool[Tensor, " g"]:
    """Say which sums cancel, or might overflow on the way, so that float32 would lose digits."""
    wide = gram.norms.amax(-1) > LARGE
    for solution in solutions:
        terms = (solution.coefficients.abs() * gram.norms).sum(-1)
        wide = wide | (terms > CANCELLING * gram.lengths(solution.coefficients))
    return wide


def _non_finite_message(window: Window, run: int) -> str:
    ragged = window.ragged
    tensor, start = int(ragged.tensors[run]), int(ragged.starts[run])
    labels = [f"input {index}" for index in range(window.n)] + ["base"]
    sources = [*window.inputs[tensor], *([] if window.bases is None else [window.bases[tensor]])]
    for label, source in zip(labels, sources, strict=False):
        values = source.view(-1)[start : start + int(ragged.sizes[run])]
        count = int((~values.isfinite()).sum())
        if count:
            return (
                f"{label}: tensor {window.label(run)}: expected finite values, got {count} that are NaN or infinite; "
                "train or export that model again"
            )
    return f"tensor {window.label(run)}: expected values whose squares fit into float64, got larger; rescale it"


def _overflow_message(window: Window, run: int, outputs: Sequence[Sequence[Tensor]]) -> str:
    ragged = window.ragged
    tensor, start = int(ragged.tensors[run]), int(ragged.starts[run])
    count, dtype = 0, outputs[0][tensor].dtype
    for result in outputs:
        values = result[tensor].view(-1)[start : start + int(ragged.sizes[run])]
        if missing := int((~values.isfinite()).sum()):
            count, dtype = count + missing, values.dtype
    return f"tensor {window.label(run)}: expected values that fit into {dtype}, got {count} that do not; merge in fp32"
