"""What is left of task vectors after dropping elements: by magnitude, by magnitude without outliers, or at random.

Each function looks at the walk as often as it must and returns a ``Trim``.  A density of 1 keeps every element,
0 none.  Masks are multiplied, not selected with: torch.where takes 8 times as long on a CPU, and values are finite.

Dimensions: n inputs, r rows of a chunk, c columns of the tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float32
from torch import Tensor

from merging.masks import draw, keep_probabilities
from merging.selection import Band, find_bands, survey
from merging.walk import Trim, Walk


def keep_largest(walk: Walk, densities: Sequence[float]) -> Trim:
    """Keep the given share of each input, the largest magnitudes; at least one element unless the density is 0.

    Exactly floor(density * size) elements are kept; of equal magnitudes the earlier ones.  Reference: TIES.
    """
    if all(density == 1 for density in densities):
        return _keep_all
    seen = survey(walk)
    kept = [min(seen.size, max(1, int(density * seen.size))) if density > 0 else 0 for density in densities]
    return _keep_bands(find_bands(walk, seen, [(0, stop) for stop in kept]))


def keep_middle(walk: Walk, densities: Sequence[float], gammas: Sequence[float]) -> Trim:
    """Drop the share gamma of the largest magnitudes, then the smallest until the density is reached.

    The density comes first: with density + gamma > 1, fewer of the largest are dropped, and with a density of 1
    none.  Of equal magnitudes the later counts as the larger.  Reference: Model Breadcrumbs.
    """
    if all(density == 1 for density in densities):
        return _keep_all
    seen = survey(walk, smallest_first=True)
    ranks = []
    for density, gamma in zip(densities, gammas, strict=True):
        kept = int(density * seen.size)
        start = max(0, seen.size - kept - int(gamma * seen.size))
        ranks.append((start, start + kept))
    return _keep_bands(find_bands(walk, seen, ranks))


def drop_evenly(densities: Sequence[float], *, rescale: bool, seed: int, name: str) -> Trim:
    """Keep every element with probability density and, to ``rescale``, divide what is kept by the density.

    Rescaled, the expected task vector is the whole one.  Reference: DARE.
    """

    def trim(index: int, chunk: Float32[Tensor, "n r c"]) -> Float32[Tensor, "n r c"]:
        left = torch.zeros_like(chunk)
        for place, density in enumerate(densities):
            if density == 1:
                left[place] = chunk[place]
            elif density > 0:
                chosen = draw(chunk[place], seed=seed, name=name, place=place, index=index) < density
                left[place] = chunk[place] * chosen / (density if rescale else 1)
        return left

    return trim


def drop_by_rank(densities: Sequence[float], epsilons: Sequence[float], *, rescale: bool, seed: int, name: str) -> Trim:
    """Keep elements with probabilities that grow with their rank in the row; ``rescale`` divides by them.

    Rescaled, the expected task vector is the whole one.  Reference: DELLA.
    """

    def trim(index: int, chunk: Float32[Tensor, "n r c"]) -> Float32[Tensor, "n r c"]:
        left = torch.zeros_like(chunk)
        for place, (density, epsilon) in enumerate(zip(densities, epsilons, strict=True)):
            if density == 1:
                left[place] = chunk[place]
            elif density > 0:
                chances = keep_probabilities(chunk[place], density, epsilon)
                chosen = draw(chunk[place], seed=seed, name=name, place=place, index=index) < chances
                left[place] = chunk[place] * chosen / (chances if rescale else 1)
        return left

    return trim


def restore_length(walk: Walk, trim: Trim, *, shortest: float = 0.0) -> Trim:
    """Scale what ``trim`` leaves of each input to the input's own sum of magnitudes (its L1 norm).

    An input of which no more than ``shortest`` is left stays as it is.
    """
    before = after = torch.zeros((), dtype=torch.float64)
    for index, chunk in enumerate(walk()):
        before = before + chunk.abs().sum((1, 2), dtype=torch.float64)
        after = after + trim(index, chunk).abs().sum((1, 2), dtype=torch.float64)
    factors = torch.where(after > shortest, before / after, 1).to(torch.float32)[:, None, None]
    return lambda index, chunk: trim(index, chunk) * factors


def _keep_all(index: int, chunk: Float32[Tensor, "n r c"]) -> Float32[Tensor, "n r c"]:
    return chunk


def _keep_bands(bands: Sequence[Band]) -> Trim:
    def trim(index: int, chunk: Float32[Tensor, "n r c"]) -> Float32[Tensor, "n r c"]:
        return torch.stack([vector * band.holds(index, vector) for band, vector in zip(bands, chunk, strict=True)])

    return trim
