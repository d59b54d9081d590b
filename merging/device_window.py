"""A window: tensors of several models on one device that are merged together, and the tables that find them.

Dimensions: k tensors, r runs, g groups, n inputs (see ``merging.ragged``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from merging.ragged import CHUNK, Ragged, cells_of, lay_out, on_device, pairs_of

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Dtypes that are merged; the caller copies all others."""


@dataclass(frozen=True)
class Window:
    """Tensors on one device, cut into runs and chunks.  It keeps them alive: its tables hold bare addresses."""

    names: Sequence[str]
    inputs: Sequence[Sequence[Tensor]]
    """For every tensor, its n inputs."""
    bases: Sequence[Tensor] | None
    """For every tensor, what its inputs are differences from; None in weight space."""
    rows: bool
    """Whether rows are groups of their own."""
    ragged: Ragged
    addresses: Int64[Tensor, "r m"]
    """Where each run begins in each input and, last, in the base; in ordinary memory."""
    device: torch.device
    owners: Int64[Tensor, " r"]
    """The group of every run, on the device."""
    sizes: Int64[Tensor, " r"]
    slots: Int64[Tensor, " _"]
    members: Int64[Tensor, " _"]
    places: Int64[Tensor, "r m"]
    """The tables of the same names (and ``addresses``), on the device."""
    pairs: Int64[Tensor, "p 2"]
    """The pairs of inputs that are measured, on the device."""
    cells: Int64[Tensor, "n n"]
    """Where a Gram matrix finds its entries among their sums, on the device."""

    @property
    def n(self) -> int:
        return len(self.inputs[0]) if self.inputs else 1

    def label(self, run: int) -> str:
        """Return the name of a run for a message: its tensor's, with the row if it is one."""
        tensor = int(self.ragged.tensors[run])
        row = ""
        if self.rows and self.inputs[tensor][0].dim() > 1:
            row = f", row {int(self.ragged.starts[run]) // max(1, int(self.ragged.sizes[run]))}"
        return f"{self.names[tensor]}{row}"


def open_window(
    inputs: Sequence[Sequence[Tensor]],
    bases: Sequence[Tensor] | None = None,
    *,
    names: Sequence[str] | None = None,
    groups: Sequence[int] | None = None,
    rows: bool = False,
    chunk: int = CHUNK,
) -> Window:
    """Check tensors and lay out the tables that find them; one transfer to their device, no synchronisation.

    Args:
        inputs: for every tensor its n inputs, of one shape and dtype, contiguous, all on one device.
        bases: for every tensor what task vectors are taken from; None merges the weights themselves.
        names: of the tensors, for messages.
        groups: the group of each tensor, counted from 0 without gaps; tensors of a group share their
            coefficients.  By default each tensor is a group.
        rows: each row of a tensor is a group of its own; a vector is one row.
        chunk: elements that one program takes, a multiple of 16.

    Raises:
        ValueError: shapes, dtypes or devices differ, a tensor is not contiguous or not of a floating-point
            dtype that is merged; it is named.
    """
    names = [f"tensor {place}" for place in range(len(inputs))] if names is None else list(names)
    assert len(names) == len(inputs), "one name for each tensor"
    assert bases is None or len(bases) == len(inputs), "one base for each tensor"
    device = inputs[0][0].device if inputs else torch.device("cpu")
    for place, (name, tensors) in enumerate(zip(names, inputs, strict=True)):
        _check(name, tensors, None if bases is None else bases[place], len(inputs[0]), device)
    ragged = lay_out([tensors[0].shape for tensors in inputs], groups=groups, rows=rows, chunk=chunk)
    pointed = inputs if bases is None else [[*row, base] for row, base in zip(inputs, bases, strict=True)]
    addresses = ragged.addresses(pointed)
    n = len(inputs[0]) if inputs else 1
    tables = [ragged.groups, ragged.sizes, ragged.slots, ragged.members, addresses, pairs_of(n), cells_of(n)]
    return Window(names, inputs, bases, rows, ragged, addresses, device, *on_device(tables, device))


def check_outputs(window: Window, outputs: Sequence[Sequence[Tensor]]) -> None:
    """Raise ValueError unless every result can be written into its tensor; ``outputs`` holds one list a result."""
    for tensors in outputs:
        for name, output, inputs in zip(window.names, tensors, window.inputs, strict=True):
            _check(f"{name} (output)", [output], None, 1, window.device)
            if output.shape != inputs[0].shape:
                expected, got = tuple(inputs[0].shape), tuple(output.shape)
                raise ValueError(f"tensor {name}: expected an output of shape {expected}, got {got}; allocate it again")


def _check(name: str, tensors: Sequence[Tensor], base: Tensor | None, n: int, device: torch.device) -> None:
    if len(tensors) != n or n == 0:
        raise ValueError(f"tensor {name}: expected {max(n, 1)} inputs, got {len(tensors)}; give one of every model")
    first = tensors[0]
    for tensor in [*tensors, *([] if base is None else [base])]:
        if tensor.dtype not in FLOATS:
            raise ValueError(
                f"tensor {name}: expected float16, bfloat16, float32 or float64, got {tensor.dtype}; copy it instead"
            )
        if tensor.shape != first.shape:
            raise ValueError(
                f"tensor {name}: expected shape {tuple(first.shape)} in all models, got {tuple(tensor.shape)}; "
                "merge checkpoints of one architecture"
            )
        if tensor.device != device or not tensor.is_contiguous():
            got = str(tensor.device) if tensor.device != device else "strides with gaps"
            raise ValueError(f"tensor {name}: expected contiguous values on {device}, got {got}; copy them there first")
    if any(tensor.dtype != first.dtype for tensor in tensors):
        got = ", ".join(sorted({str(tensor.dtype) for tensor in tensors}))
        raise ValueError(f"tensor {name}: expected one dtype in all inputs, got {got}; convert them first")
