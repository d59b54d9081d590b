"""Random choices that depend on what is chosen, not on when: on the seed, the tensor's name, the input and the chunk.

Numbers are drawn on the CPU whatever the device, so that a merge is the same everywhere, in any order and on
any number of threads.

Dimensions: r rows of a chunk, c columns of the tensor.
"""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from merging.selection import rank_keys


def draw(values: Float32[Tensor, "r c"], *, seed: int, name: str, place: int, index: int) -> Float32[Tensor, "r c"]:
    """Return numbers uniform in [0, 1), one for each element of chunk ``index`` of input ``place`` of a tensor.

    Only the shape and the device of ``values`` count.

    >>> values = torch.zeros(2, 3)
    >>> first = draw(values, seed=0, name="w", place=0, index=0)
    >>> torch.equal(first, draw(values, seed=0, name="w", place=0, index=0))
    True
    >>> torch.equal(first, draw(values, seed=0, name="w", place=1, index=0))
    False
    """
    generator = torch.Generator().manual_seed(_seed_of(seed, name, place, index))
    return torch.rand(values.shape, generator=generator).to(values.device)


def keep_probabilities(values: Float32[Tensor, "r c"], density: float, epsilon: float) -> Float32[Tensor, "r c"]:
    """Return DELLA's probabilities: density - epsilon for the smallest of a row to density + epsilon for the largest.

    They grow evenly with the rank of the magnitude; of equals the earlier has the lower rank.  The element of a
    row of one has no rank among others and gets the density itself.  Reference: Deep et al. 2024, MagPrune.

    >>> keep_probabilities(torch.tensor([[3.0, -1.0, 2.0]]), 0.5, 0.25)
    tensor([[0.7500, 0.2500, 0.5000]])
    """
    columns = values.shape[1]
    if columns == 1:
        return torch.full_like(values, density)
    steps = torch.arange(columns, dtype=torch.float64) / (columns - 1)
    by_rank = (density - epsilon + 2 * epsilon * steps).to(values.device, torch.float32)
    return torch.empty_like(values).scatter_(1, _order_in_rows(values), by_rank.expand_as(values))


def _order_in_rows(values: Float32[Tensor, "r c"]) -> Int64[Tensor, "r c"]:
    """Return the columns of each row from the smallest magnitude to the largest, equals from left to right.

    Magnitude and column are packed into one integer, so that plain sorting is enough: on a CPU numpy's takes a
    twentieth of the time of torch's stable argsort.
    """
    packed = rank_keys(values, smallest_first=False).long() << 32
    packed += torch.arange(values.shape[1], device=values.device)
    if packed.device.type == "cpu":
        packed.numpy().sort(axis=1)
    else:
        packed = packed.sort(dim=1).values
    return packed & 0xFFFF_FFFF


def _seed_of(seed: int, name: str, place: int, index: int) -> int:
    """Return 64 bits of a digest; the name comes last because it may hold anything."""
    digest = hashlib.sha256(f"{seed} {place} {index} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big")
