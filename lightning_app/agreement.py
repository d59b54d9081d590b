"""What ranks agree on before a step, over the CPUs: no device waits for it."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist


class Agreement:
    """A group of all ranks whose messages go over the CPUs, beside that of the gradients; made by all ranks together."""

    def __init__(self) -> None:
        self._group = None if "gloo" in dist.get_backend() else dist.new_group(backend="gloo")

    def of(self, number: int, kind: Literal["most", "least"]) -> int:
        """The largest or smallest of what the ranks bring; all of them have to ask."""
        found = torch.tensor(number)
        dist.all_reduce(found, dist.ReduceOp.MAX if kind == "most" else dist.ReduceOp.MIN, group=self._group)
        return int(found)
