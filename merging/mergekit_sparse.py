"""Element methods by mergekit 0.1.5's own formulas, where they differ from those of ``merging.sparse``.

- DARE and DELLA bring what is kept to the task vector's L1 norm, where the papers divide by the probability.
- The sign vote adds in float32, in the order of the inputs.
- A task vector of which an L1 norm below 1e-7 is left is not rescaled.
- SCE gives equal shares to task vectors whose mean squares sum to less than 1e-6, as those of fine-tuned models
  mostly do, and divides by 1e-6 at least.
- Under ``normalize``, weights that sum to zero divide by 1 where ours are refused.

Random masks are drawn as ours are: mergekit's depend on the order of its work.

Dimensions: n inputs.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float64
from torch import Tensor

from merging.consensus import add, elect
from merging.options import Options
from merging.sce import average_agreeing, keep_most_varying, sums_of_squares
from merging.sparse import per_input
from merging.trimming import drop_by_rank, drop_evenly, keep_largest, keep_middle, restore_length
from merging.walk import Combine, Trim, Walk

SHORTEST = 1e-7
SMALLEST_SUM = 1e-8
SMALLEST_SHARE = 1e-6


def ties(walk: Walk, weights: Float64[Tensor, " n"], options: Options, name: str) -> Combine:
    """See :func:`merging.sparse.ties`."""
    return _elect(_rescaled(walk, _largest(walk, len(weights), options), options), weights, options)


def dare_linear(walk: Walk, weights: Float64[Tensor, " n"], options: Options, name: str) -> Combine:
    """See :func:`merging.sparse.dare_linear`; rescaled in the L1 norm."""
    return _add(_rescaled(walk, _evenly(len(weights), options, name), options), weights, options)


def dare_ties(walk: Walk, weights: Float64[Tensor, " n"], options: Options, name: str) -> Combine:
    """See :func:`merging.sparse.dare_ties`; rescaled in the L1 norm."""
    return _elect(_rescaled(walk, _evenly(len(weights), options, name), options), weights, options)


def della(walk: Walk, weights: Float64[Tensor, " n"], options: Options, name: str) -> Combine:
    """See :func:`merging.sparse.della`; rescaled in the L1 norm."""
    return _elect(_rescaled(walk, _by_rank(len(weights), options, name), options), weights, options)


def della_linear(walk: Walk, weights: Float64[Tensor, " n"], options: Options, name: str) -> Combine:
    """See :func:`merging.sparse.della_linear`; rescaled in the L1 norm."""
    return _add(_rescaled(walk, _by_rank(len(weights), options, name), options), weights, options)


def breadcrumbs(walk: Walk, weights: Float64[Tensor, " n"], options: Options, name: str) -> Combine:
    """See :func:`merging.sparse.breadcrumbs`."""
    return _add(_rescaled(walk, _middle(walk, len(weights), options), options), weights, options)


def breadcrumbs_ties(walk: Walk, weights: Float64[Tensor, " n"], options: Options, name: str) -> Combine:
    """See :func:`merging.sparse.breadcrumbs_ties`."""
    return _elect(_rescaled(walk, _middle(walk, len(weights), options), options), weights, options)


def sce(walk: Walk, weights: Float64[Tensor, " n"], options: Options, name: str) -> Combine:
    """See :func:`merging.sce.sce`; equal shares for small task vectors."""
    trim = keep_most_varying(walk, options.select_topk)
    size = sum(chunk[0].numel() for chunk in walk())
    means = sums_of_squares(walk, trim) / size
    total = means.sum()
    shares = means / total if float(total) >= SMALLEST_SHARE else torch.full_like(means, 1 / len(means))
    return average_agreeing(trim, shares, precision=torch.float32, smallest=SMALLEST_SHARE)


def _largest(walk: Walk, inputs: int, options: Options) -> Trim:
    return keep_largest(walk, per_input("density", options, inputs))


def _middle(walk: Walk, inputs: int, options: Options) -> Trim:
    return keep_middle(walk, per_input("density", options, inputs), per_input("gamma", options, inputs))


def _evenly(inputs: int, options: Options, name: str) -> Trim:
    return drop_evenly(per_input("density", options, inputs), rescale=False, seed=options.seed, name=name)


def _by_rank(inputs: int, options: Options, name: str) -> Trim:
    densities, epsilons = per_input("density", options, inputs), per_input("epsilon", options, inputs)
    return drop_by_rank(densities, epsilons, rescale=False, seed=options.seed, name=name)


def _rescaled(walk: Walk, trim: Trim, options: Options) -> Trim:
    return restore_length(walk, trim, shortest=SHORTEST) if options.rescale else trim


def _add(trim: Trim, weights: Float64[Tensor, " n"], options: Options) -> Combine:
    cancel = abs(float(weights.sum())) < SMALLEST_SUM
    return add(trim, weights, replace(options, normalize=options.normalize and not cancel))


def _elect(trim: Trim, weights: Float64[Tensor, " n"], options: Options) -> Combine:
    return elect(trim, weights, options, precision=torch.float32)
