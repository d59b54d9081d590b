"""Tables over tensors of different shapes, so that one launch of a kernel visits all of them.

A *run* is a stretch of consecutive elements that is measured on its own: a tensor, or one of its rows.  Runs
are sorted by group (runs of a group share their coefficients) and cut into chunks of one length, numbered
through the window.  A kernel reads from the tables which run and which part of it a chunk is, and where its
values lie: addresses of 64 bits, nothing is stacked or copied.

Dimensions: k tensors, r runs, g groups, c chunks, m pointers of a run.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

CHUNK = 2**15
"""Elements of a chunk; a multiple of 16, so that chunks of aligned tensors are aligned."""

ALIGNMENT = 16
"""Bytes that one thread loads at once where every address is a multiple of it."""

INDEX_BITS = 32
"""Low bits of an entry of the chunk table: the place of the chunk in its run; above them stands the run."""


@dataclass(frozen=True)
class Ragged:
    """How a window's tensors are cut; every table lies in ordinary memory."""

    tensors: Int64[Tensor, " r"]
    """The tensor that a run belongs to."""
    starts: Int64[Tensor, " r"]
    """Its first element, counted from the tensor's."""
    sizes: Int64[Tensor, " r"]
    """Its elements."""
    groups: Int64[Tensor, " r"]
    """Its group; never descending."""
    slots: Int64[Tensor, " _"]
    """The number of its first chunk, counted through the window, and at the end the number of all chunks."""
    members: Int64[Tensor, " _"]
    """The first run of each group, and at the end the number of all runs."""
    chunk: int
    """Elements of a chunk; the last one of a run may have fewer."""

    @property
    def runs(self) -> int:
        return len(self.sizes)

    @property
    def chunks(self) -> int:
        return int(self.slots[-1])

    @property
    def group_count(self) -> int:
        return len(self.members) - 1

    def chunk_table(self, runs: Int64[Tensor, " k"]) -> Int64[Tensor, " c"]:
        """Return an entry for every chunk of ``runs``: the run above, the place in the run below ``INDEX_BITS``."""
        counts = self.slots.diff()[runs]
        owners = runs.repeat_interleave(counts)
        firsts = (counts.cumsum(0) - counts).repeat_interleave(counts)
        return (owners << INDEX_BITS) | (torch.arange(len(owners)) - firsts)

    def addresses(self, tensors: Sequence[Sequence[Tensor]]) -> Int64[Tensor, "r m"]:
        """Return where each run begins in each of the m tensors that ``tensors`` holds for every tensor."""
        table = [[tensor.data_ptr() for tensor in row] for row in tensors]
        widths = [[tensor.element_size() for tensor in row] for row in tensors]
        begins, bytes_each = (torch.tensor(rows, dtype=torch.int64)[self.tensors] for rows in (table, widths))
        return begins + self.starts.unsqueeze(1) * bytes_each

    def launches(
        self, kinds: Sequence[Hashable], addresses: Int64[Tensor, "r m"]
    ) -> list[tuple[int, bool, Int64[Tensor, " _"]]]:
        """Split the runs into those that one launch can take: (a tensor of that kind, aligned, runs).

        ``kinds`` says for every tensor what a kernel is compiled for, its dtypes.  In most windows there is one.
        """
        numbers = {kind: kinds.index(kind) for kind in kinds}
        kind = torch.tensor([numbers[kind] for kind in kinds], dtype=torch.int64)[self.tensors]
        aligned = (addresses % ALIGNMENT == 0).all(1)
        found: list[tuple[int, bool, Tensor]] = []
        for number in sorted(set(numbers.values())):
            for wanted in (True, False):
                runs = ((kind == number) & (aligned == wanted) & (self.sizes > 0)).nonzero().flatten()
                if len(runs):
                    found.append((number, wanted, runs))
        return found


def lay_out(
    shapes: Sequence[Sequence[int]],
    *,
    groups: Sequence[int] | None = None,
    rows: bool = False,
    chunk: int = CHUNK,
) -> Ragged:
    """Cut tensors of these shapes into runs and chunks.

    Args:
        shapes: one for each tensor.
        groups: the group of each tensor, counted from 0 without gaps; by default each is its own.
        rows: every row (all but the first dimension) is a run and a group of its own; a vector is one row.
        chunk: elements of a chunk, a multiple of 16.

    >>> table = lay_out([(2, 40), (5,)], chunk=32)
    >>> table.slots.tolist(), table.chunk_table(torch.tensor([0, 1])).bitwise_and(7).tolist()
    ([0, 3, 4], [0, 1, 2, 0])
    """
    assert chunk > 0, "chunks hold something"
    assert chunk % ALIGNMENT == 0, f"chunk {chunk} is no multiple of {ALIGNMENT}"
    assert groups is None or not rows, "rows are groups of their own"
    counts = torch.tensor([shape[0] if rows and len(shape) > 1 else 1 for shape in shapes], dtype=torch.int64)
    elements = torch.tensor([math.prod(shape) for shape in shapes], dtype=torch.int64)
    tensors = torch.arange(len(shapes)).repeat_interleave(counts)
    sizes = (elements // counts.clamp(min=1))[tensors]
    starts = (torch.arange(len(tensors)) - (counts.cumsum(0) - counts)[tensors]) * sizes
    owner = torch.arange(len(tensors)) if groups is None else torch.tensor(groups, dtype=torch.int64)[tensors]
    order = owner.argsort(stable=True)
    tensors, starts, sizes, owner = tensors[order], starts[order], sizes[order], owner[order]
    per_group = owner.bincount()
    assert len(shapes) == 0 or bool(per_group.all()), "groups are counted from 0 without gaps"
    slots = _running((sizes + chunk - 1) // chunk)
    return Ragged(tensors, starts, sizes, owner, slots, _running(per_group), chunk)


def _running(counts: Int64[Tensor, " k"]) -> Int64[Tensor, " k+1"]:
    """Return the sums of what stands before each place, and at the end the sum of all."""
    return torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])


def on_device(tables: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Return copies of int64 ``tables`` on ``device``: one transfer for all of them, without waiting for it."""
    sizes = [table.numel() for table in tables]
    # Only from pinned memory does a copy to the device not wait.
    packed = torch.empty(sum(sizes), dtype=torch.int64, pin_memory=device.type == "cuda")
    torch.cat([table.flatten() for table in tables], out=packed)
    parts = torch.split(packed.to(device, non_blocking=True), sizes)
    return [part.reshape(table.shape) for part, table in zip(parts, tables, strict=True)]


def cells_of(n: int) -> Int64[Tensor, "n n"]:
    """Return where a Gram matrix finds its entries among the sums of the pairs, four (x x, x y, y y, _) for each."""
    cells = torch.zeros(n, n, dtype=torch.int64)
    for place, (i, j) in enumerate(pairs_of(n).tolist()):
        cells[i, i], cells[i, j], cells[j, i], cells[j, j] = (4 * place + column for column in (0, 1, 1, 2))
    return cells


def pairs_of(n: int) -> Int64[Tensor, "pairs 2"]:
    """Return the pairs i < j of n inputs; of one input, the pair of it and itself."""
    return torch.combinations(torch.arange(n), 2) if n > 1 else torch.zeros(1, 2, dtype=torch.int64)
