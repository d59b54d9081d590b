"""The state of a metric that needs all rows at once: gathered from every rank, each text once, in one order.

torchmetrics concatenates what the ranks have, rank by rank. Three things in that change a number with the number of
ranks: the copies with which `DistributedSampler` pads (a copy is at distance 0 and raises a silhouette), the order of
the rows (sums round differently), and a rank that has no rows (its stand-in has another shape and dtype).

Dimension names:
    n: rows, copies included
    m: rows, each text once
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor
from torch import distributed as dist
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

_DTYPES = (torch.int64, torch.float64, torch.float32, torch.bfloat16, torch.float16)
_NO_INDEX = -1
_FAR = 0.1


class RowMetric(Metric):
    """A metric that keeps its rows. A subclass names its ``columns``, keeps them in ``update`` and has a ``score``."""

    is_differentiable = False
    full_state_update = False
    columns: ClassVar[Sequence[str]] = ("embeddings", "labels")
    indices: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        """Take what every `torchmetrics.Metric` takes; rows are gathered by `gathered_rows` unless told otherwise."""
        super().__init__(**{"dist_sync_fn": gathered_rows} | kwargs)
        for name in (*self.columns, "indices"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    @abstractmethod
    def score(self, **columns: Tensor) -> float:
        """The metric of all rows, each text once; nan where undefined."""

    def compute(self) -> Tensor:
        """The metric of the rows of all ranks: 0-d, float64, on the metric's device; nan where undefined or without rows.

        Raises:
            ValueError: indices in some updates only, one index for different texts, or ranks of different widths.
        """
        rows = self.rows()
        value = math.nan if rows is None else self.score(**rows)
        return torch.tensor(value, dtype=torch.float64, device=self.device)

    def keep(self, indices: Tensor | None, **columns: Tensor) -> None:
        """Append rows to the state.

        Raises:
            ValueError: columns of different lengths, indices that are not integers from 0, or another width or dtype
                than in earlier updates.
        """
        n = next(iter(columns.values())).shape[0]
        places = torch.full((n,), _NO_INDEX) if indices is None else whole_numbers("indices", indices)
        new = {name: column.detach().to(self.device) for name, column in (columns | {"indices": places}).items()}
        for name, column in new.items():
            if column.shape[0] != n:
                raise ValueError(
                    f"{name}: expected {n}, one for each row of the embeddings, got {column.shape[0]}; align the two"
                )
            for kept in getattr(self, name)[:1]:
                _require_same_kind(name, column, kept)
        for name, column in new.items():
            getattr(self, name).append(column)

    def rows(self) -> dict[str, Tensor] | None:
        """The columns, each text once, in an order that no rank decides; None if there are no rows."""
        indices = _joined(self.indices)
        if indices.shape[0] == 0:
            return None
        columns = {name: _joined(getattr(self, name)) for name in self.columns}
        numbered = int((indices != _NO_INDEX).sum())
        if 0 < numbered < indices.shape[0]:
            raise ValueError(
                f"indices: expected them in every update or in none, got {numbered} of {indices.shape[0]} rows with one; "
                "give them always"
            )
        order = _first_of_each(indices, columns) if numbered else _order_by_content(list(columns.values()))
        return {name: column[order] for name, column in columns.items()}


def whole_numbers(name: str, values: Tensor) -> Int64[Tensor, " n"]:
    """A column of numbers 0, 1, ... as int64.

    Raises:
        ValueError: another dtype, more than one dimension, or a negative number (which often stands for a missing one).
    """
    if values.ndim != 1 or values.is_floating_point() or values.is_complex():
        raise ValueError(
            f"{name}: expected a tensor of integers with one dimension, got {values.dtype} of shape "
            f"{tuple(values.shape)}; number them 0, 1, ..."
        )
    negative = int((values < 0).sum())
    if negative:
        raise ValueError(f"{name}: expected numbers from 0, got {negative} negative ones; leave rows without one out")
    return values.long()


def gathered_rows(result: Tensor, group: Any = None) -> list[Tensor]:
    """The tensors of all ranks, uneven and empty ones included.

    Raises:
        ValueError: dtypes or widths that differ between ranks; all ranks raise, so that none is left waiting.
    """
    width = result.shape[1] if result.ndim == 2 else 0
    kind = [result.shape[0], _DTYPES.index(result.dtype), result.ndim, width]
    mine = torch.tensor(kind, device=result.device)
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, mine, group=group)
    kinds = {tuple(rank.tolist()[1:]) for rank in everyone if int(rank[0])}
    if len(kinds) > 1:
        found = " and ".join(f"{_DTYPES[dtype]} of width {width}" for dtype, _, width in sorted(kinds))
        raise ValueError(
            f"update: expected rows of one dtype and width on all ranks, got {found}; use one model on all"
        )
    if not kinds:
        return [result] * len(everyone)
    if result.shape[0] == 0:
        ((dtype, dimensions, width),) = kinds
        result = torch.empty((0, width)[:dimensions], dtype=_DTYPES[dtype], device=result.device)
    return gather_all_tensors(result, group)


def _require_same_kind(name: str, column: Shaped[Tensor, "n ..."], kept: Shaped[Tensor, "_n ..."]) -> None:
    if column.shape[1:] != kept.shape[1:]:
        raise ValueError(
            f"{name}: expected the width of the updates before, {kept.shape[1]}, got {column.shape[1]}; "
            "measure one model at a time, with reset() in between"
        )
    if column.dtype != kept.dtype:
        raise ValueError(
            f"{name}: expected the dtype of the updates before, {kept.dtype}, got {column.dtype}; convert one of them"
        )


def _joined(state: Tensor | list[Tensor]) -> Tensor:
    """A state is a list before it is synchronised, and a tensor after."""
    return dim_zero_cat(state) if len(state) else torch.empty(0)


def _first_of_each(indices: Int64[Tensor, " n"], columns: Mapping[str, Shaped[Tensor, "n ..."]]) -> Int64[Tensor, " m"]:
    """Where the first copy of each index stands, by index. Copies that are of different texts are an error."""
    order = indices.argsort(stable=True)
    ordered = indices[order]
    fresh = torch.ones_like(ordered, dtype=torch.bool)
    fresh[1:] = ordered[1:] != ordered[:-1]
    first = order[fresh]
    copy = order[~fresh]
    original = first[(fresh.cumsum(0) - 1)[~fresh]]
    for name, column in columns.items():
        wrong = _differ(column[original], column[copy])
        if bool(wrong.any()):
            raise ValueError(
                f"indices: expected one index a text, got different {name} under index {int(indices[copy][wrong][0])}; "
                "give each text its place in the whole data set (not in its batch), and reset() after each pass"
            )
    return first


def _differ(a: Shaped[Tensor, "c ..."], b: Shaped[Tensor, "c ..."]) -> Shaped[Tensor, " c"]:
    """Which copies are of another text: labels that differ, embeddings farther apart than batching could round them."""
    if a.ndim == 1:
        return a != b
    a, b = a.double(), b.double()
    return torch.linalg.vector_norm(a - b, dim=1) > _FAR * torch.linalg.vector_norm(a, dim=1)


def _order_by_content(columns: Sequence[Shaped[Tensor, "n ..."]]) -> Int64[Tensor, " n"]:
    """An order of the rows that depends on nothing but what is in them."""
    places = [torch.unique(column, dim=0, return_inverse=True)[1] for column in columns]
    return torch.unique(torch.stack(places, dim=1), dim=0, return_inverse=True)[1].argsort(stable=True)
