"""The elements of given ranks by magnitude, found exactly in two or three walks, never by a sort.

A float32's bit pattern without its sign is an integer that grows with its magnitude, so thresholds are found
by counting patterns: first by their high 16 bits, then by their low 16 bits inside the bin where the rank
lies.  Equal magnitudes are ranked by position, as a stable sort does; a third walk looks for the position
where a rank falls among equals, and is made only if one does.

Dimensions: n inputs, r rows of a chunk, c columns of the tensor, m elements of a chunk, h bins of high bits.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float32, Int32, Int64
from torch import Tensor

from merging.walk import Walk

INFINITY = 0x7F80_0000
"""Bit pattern of float32's infinity, above that of every number."""

HIGH_BINS = 2**15
LOW_BINS = 2**16

NEVER = sys.maxsize


@dataclass(frozen=True)
class Survey:
    """How magnitudes are distributed over the inputs."""

    counts: Int64[Tensor, "n h"]
    """Elements of each input by the high bits of their key."""
    size: int
    """Elements of one input."""
    nonzero: tuple[int, ...]
    """Elements of each input that are not zero."""
    smallest_first: bool
    """Whether ranks count from the smallest magnitude."""


@dataclass(frozen=True)
class Cut:
    """Separates the elements of the first so many ranks from the others, by a threshold on their keys.

    The threshold is ``key`` up to a place of the walk and ``key + 1`` from there on: equals after it are out.
    """

    key: int
    chunk: int = NEVER
    offset: int = 0

    def precedes(self, index: int, keys: Int32[Tensor, " m"]) -> Bool[Tensor, " m"]:
        """Return which elements of chunk ``index`` come before the cut."""
        if index != self.chunk:
            return keys >= self.key + (index > self.chunk)
        return torch.cat([keys[: self.offset] >= self.key, keys[self.offset :] > self.key])


BEFORE_ALL = Cut(2**31 - 1)
AFTER_ALL = Cut(0)


@dataclass(frozen=True)
class Band:
    """The elements between two cuts."""

    start: Cut
    stop: Cut
    smallest_first: bool

    def holds(self, index: int, values: Float32[Tensor, "r c"]) -> Bool[Tensor, "r c"]:
        """Return which elements of chunk ``index`` of the walk, whose values are given, lie in the band."""
        keys = rank_keys(values, self.smallest_first).flatten()
        inside = self.stop.precedes(index, keys)
        if self.start != BEFORE_ALL:
            inside &= ~self.start.precedes(index, keys)
        return inside.view_as(values)


def rank_keys(values: Float32[Tensor, "*shape"], smallest_first: bool) -> Int32[Tensor, "*shape"]:
    """Return integers, not negative, whose descending order is that of the ranks.

    >>> rank_keys(torch.tensor([-2.0, 0.0, 1.0]), smallest_first=False).argsort(descending=True)
    tensor([0, 2, 1])
    """
    bits = values.view(torch.int32) & 0x7FFF_FFFF
    return INFINITY - bits if smallest_first else bits


def survey(walk: Walk, *, smallest_first: bool = False) -> Survey:
    """Count the magnitudes of every input in one walk."""
    counts = nonzero = None
    size = 0
    for chunk in walk():
        if counts is None or nonzero is None:
            counts = torch.zeros(len(chunk), HIGH_BINS, dtype=torch.int64, device=chunk.device)
            nonzero = torch.zeros(len(chunk), dtype=torch.int64, device=chunk.device)
        high = rank_keys(chunk, smallest_first).flatten(1) >> 16
        for row, bins in zip(counts, high, strict=True):
            row += torch.bincount(bins, minlength=HIGH_BINS)
        nonzero += chunk.flatten(1).count_nonzero(1)
        size += chunk[0].numel()
    assert counts is not None, "a walk has at least one chunk"
    assert nonzero is not None
    return Survey(counts.cpu(), size, tuple(nonzero.tolist()), smallest_first)


def find_bands(walk: Walk, seen: Survey, ranks: Sequence[tuple[int, int]]) -> tuple[Band, ...]:
    """Return, for each input, the elements whose ranks lie in [start, stop), 0 the first.

    ``seen`` is the survey of the same walk; of equal magnitudes the earlier in the walk has the lower rank.

    >>> vector = torch.tensor([[[4.0, -1.0, 3.0, 1.0, -2.0]]])
    >>> walk = lambda: iter([vector])
    >>> [band] = find_bands(walk, survey(walk), [(0, 4)])
    >>> band.holds(0, vector[0])
    tensor([[ True,  True,  True, False,  True]])
    """
    assert all(0 <= start <= stop <= seen.size for start, stop in ranks)
    inner = {(place, rank) for place, pair in enumerate(ranks) for rank in pair if 0 < rank < seen.size}
    cuts = _find_cuts(walk, seen, sorted(inner)) if inner else {}

    def cut(place: int, rank: int) -> Cut:
        if rank in (0, seen.size):
            return AFTER_ALL if rank else BEFORE_ALL
        return cuts[place, rank]

    return tuple(
        Band(cut(place, start), cut(place, stop), seen.smallest_first) for place, (start, stop) in enumerate(ranks)
    )


def _find_cuts(walk: Walk, seen: Survey, wanted: Sequence[tuple[int, int]]) -> dict[tuple[int, int], Cut]:
    """Return the cut after so many elements, for every (input, number of elements)."""
    bins = [_bin_of_rank(seen.counts[place], rank) for place, rank in wanted]
    places = [place for place, _ in wanted]
    counts = _count_low_bits(walk, seen.smallest_first, list(zip(places, (high for high, _ in bins), strict=True)))
    cuts: dict[tuple[int, int], Cut] = {}
    among_equals: dict[tuple[int, int], tuple[int, int]] = {}
    for asked, (high, left), lows in zip(wanted, bins, counts, strict=True):
        low, taken = _bin_of_rank(lows, left)
        key = (high << 16) + low
        cuts[asked] = Cut(key)
        if taken < int(lows[low]):
            among_equals[asked] = (key, taken)
    return cuts | _place_among_equals(walk, seen.smallest_first, among_equals)


def _bin_of_rank(counts: Int64[Tensor, " bins"], rank: int) -> tuple[int, int]:
    """Return the bin, from the last downwards, in which ``rank`` elements are complete, and how many of it that takes."""
    totals = counts.flip(0).cumsum(0)
    at = int(torch.searchsorted(totals, rank))
    found = len(counts) - 1 - at
    return found, rank - int(totals[at] - counts[found])


def _count_low_bits(
    walk: Walk, smallest_first: bool, wanted: Sequence[tuple[int, int]]
) -> Int64[Tensor, "wanted low_bins"]:
    """Count, for every (input, bin of high bits), the elements in that bin by their low bits."""
    counts = None
    for chunk in walk():
        if counts is None:
            counts = torch.zeros(len(wanted), LOW_BINS, dtype=torch.int64, device=chunk.device)
        keys = rank_keys(chunk, smallest_first).flatten(1)
        high = keys >> 16
        for row, (place, bin_) in zip(counts, wanted, strict=True):
            row += torch.bincount(keys[place][high[place] == bin_] & 0xFFFF, minlength=LOW_BINS)
    assert counts is not None, "a walk has at least one chunk"
    return counts.cpu()


def _place_among_equals(
    walk: Walk, smallest_first: bool, wanted: dict[tuple[int, int], tuple[int, int]]
) -> dict[tuple[int, int], Cut]:
    """Find where in the walk so many elements of one key have been passed; ``wanted`` maps to (key, number)."""
    found: dict[tuple[int, int], Cut] = {}
    left = {asked: taken for asked, (_, taken) in wanted.items()}
    chunks = enumerate(walk()) if wanted else iter(())
    for index, chunk in chunks:
        keys = rank_keys(chunk, smallest_first).flatten(1)
        for asked in wanted.keys() - found.keys():
            key = wanted[asked][0]
            equals = (keys[asked[0]] == key).nonzero()[:, 0]
            if len(equals) >= left[asked]:
                found[asked] = Cut(key, index, int(equals[left[asked] - 1]) + 1)
            else:
                left[asked] -= len(equals)
        if len(found) == len(wanted):
            break
    return found
