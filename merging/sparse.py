"""Element methods: what becomes of an element depends on its magnitude, on chance, or on the other inputs' signs.

A method is ``(walk, weights, options, name) -> combine``: it walks over the tensor's task vectors as often as it
must (never holding them), settles what it needs, and returns the function that merges a chunk.  Each is a way of
dropping elements (``merging.trimming``) and a way of putting the rest together (``merging.consensus``).

Dimensions: n inputs.
"""

from __future__ import annotations

import math

from jaxtyping import Float64
from torch import Tensor

from merging.consensus import add, elect
from merging.methods import METHODS
from merging.options import Options
from merging.sce import sce
from merging.trimming import drop_by_rank, drop_evenly, keep_largest, keep_middle, restore_length
from merging.walk import Combine, Trim, Walk

__all__ = [
    "Combine",
    "Walk",
    "breadcrumbs",
    "breadcrumbs_ties",
    "check_options",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "per_input",
    "sce",
    "ties",
]

DEFAULTS = {"density": 1.0, "gamma": 0.01, "epsilon": 0.15}
"""Of the options with one value per input; an empty tuple stands for them."""


def ties(walk: Walk, weights: Float64[Tensor, " n"], options: Options, name: str) -> Combine:
    """Keep the largest share ``density`` of each task vector, elect the sign of each element, add those that agree.

    Reference: Yadav et al. 2023, TIES-Merging, arXiv:2306.01708.

    >>> import torch
    >>> vectors = torch.tensor([[[4.0, 1.0, -2.0]], [[2.0, -3.0, -4.0]]])
    >>> combine = ties(lambda: iter([vectors]), torch.ones(2).double(), Options(normalize=True), "w")
    >>> combine(0, vectors)
    tensor([[ 3., -3., -3.]])
    """
    return elect(_trim_largest(walk, len(weights), options), weights, options)


def dare_linear(walk: Walk, weights: Float64[Tensor, " n"], options: Options, name: str) -> Combine:
    """Keep elements with probability ``density``, divide them by it (``rescale``), add.

    Reference: Yu et al. 2024, Language models are super mario, arXiv:2311.03099.
    """
    return add(_trim_evenly(len(weights), options, name), weights, options)


def dare_ties(walk: Walk, weights: Float64[Tensor, " n"], options: Options, name: str) -> Combine:
    """Keep elements with probability ``density``, divide them by it (``rescale``), elect signs as in TIES.

    Reference: Yu et al. 2024, Language models are super mario, arXiv:2311.03099.
    """
    return elect(_trim_evenly(len(weights), options, name), weights, options)


def della(walk: Walk, weights: Float64[Tensor, " n"], options: Options, name: str) -> Combine:
    """Keep elements with a probability by rank, divide them by it (``rescale``), elect signs as in TIES.

    The probability grows from density - epsilon to density + epsilon with the magnitude's rank in its row.
    Reference: Deep et al. 2024, DELLA-Merging, arXiv:2406.11617.
    """
    return elect(_trim_by_rank(len(weights), options, name), weights, options)


def della_linear(walk: Walk, weights: Float64[Tensor, " n"], options: Options, name: str) -> Combine:
    """Keep elements with a probability by rank, divide them by it (``rescale``), add.

    Reference: Deep et al. 2024, DELLA-Merging, arXiv:2406.11617.
    """
    return add(_trim_by_rank(len(weights), options, name), weights, options)


def breadcrumbs(walk: Walk, weights: Float64[Tensor, " n"], options: Options, name: str) -> Combine:
    """Drop the largest share ``gamma`` and the smallest elements, so that ``density`` is left; add.

    Reference: Davari and Belilovsky 2023, Model Breadcrumbs, arXiv:2312.06795.
    """
    return add(_trim_outliers(walk, len(weights), options), weights, options)


def breadcrumbs_ties(walk: Walk, weights: Float64[Tensor, " n"], options: Options, name: str) -> Combine:
    """Drop the largest share ``gamma`` and the smallest elements, so that ``density`` is left; elect signs as in TIES.

    Reference: Davari and Belilovsky 2023, Model Breadcrumbs, arXiv:2312.06795.
    """
    return elect(_trim_outliers(walk, len(weights), options), weights, options)


def per_input(name: str, options: Options, inputs: int) -> tuple[float, ...]:
    """Return one value of ``density``, ``gamma`` or ``epsilon`` for each input.

    >>> per_input("density", Options(), 2)
    (1.0, 1.0)
    """
    values: tuple[float, ...] = getattr(options, name) or (DEFAULTS[name],) * inputs
    assert len(values) == inputs, name
    return values


def check_options(method: str, options: Options) -> None:
    """Refuse values that ``method`` reads and that are out of range.

    Raises:
        ValueError: naming the flag.

    >>> check_options("ties", Options(density=(0.5, 1.5)))
    Traceback (most recent call last):
    ValueError: --density: expected numbers in [0, 1], got [0.5, 1.5]; 1 keeps every element, 0 none
    """
    takes = METHODS[method].takes
    if "density" in takes and not all(0 <= density <= 1 for density in options.density):
        raise ValueError(
            f"--density: expected numbers in [0, 1], got {list(options.density)}; 1 keeps every element, 0 none"
        )
    if "gamma" in takes and not all(0 <= gamma < 1 for gamma in options.gamma):
        raise ValueError(
            f"--gamma: expected numbers in [0, 1), got {list(options.gamma)}; 0.01 drops the largest hundredth"
        )
    if "epsilon" in takes:
        _check_epsilon(options)
    if "select_topk" in takes and not 0 <= options.select_topk <= 1:
        raise ValueError(
            f"--select-topk: expected a number in [0, 1], got {options.select_topk}; 1 merges every element"
        )
    if "scale" in takes and not math.isfinite(options.scale):
        raise ValueError(f"--scale: expected a finite number, got {options.scale}; 1 leaves the merge as it is")


def _check_epsilon(options: Options) -> None:
    if not all(0 <= epsilon < 0.5 for epsilon in options.epsilon):
        raise ValueError(
            f"--epsilon: expected numbers in [0, 0.5), got {list(options.epsilon)}; 0 keeps all with the same chance"
        )
    inputs = max(len(options.density), len(options.epsilon))
    pairs = zip(per_input("density", options, inputs), per_input("epsilon", options, inputs), strict=True)
    for density, epsilon in pairs:
        if 0 < density < 1 and not 0 < density - epsilon <= density + epsilon < 1:
            raise ValueError(
                f"--epsilon: expected density - epsilon and density + epsilon inside (0, 1), got density {density:g} "
                f"and epsilon {epsilon:g}; give an epsilon below {min(density, 1 - density):g}"
            )


def _trim_largest(walk: Walk, inputs: int, options: Options) -> Trim:
    trim = keep_largest(walk, per_input("density", options, inputs))
    return restore_length(walk, trim) if options.rescale else trim


def _trim_outliers(walk: Walk, inputs: int, options: Options) -> Trim:
    trim = keep_middle(walk, per_input("density", options, inputs), per_input("gamma", options, inputs))
    return restore_length(walk, trim) if options.rescale else trim


def _trim_evenly(inputs: int, options: Options, name: str) -> Trim:
    densities = per_input("density", options, inputs)
    return drop_evenly(densities, rescale=options.rescale, seed=options.seed, name=name)


def _trim_by_rank(inputs: int, options: Options, name: str) -> Trim:
    densities, epsilons = per_input("density", options, inputs), per_input("epsilon", options, inputs)
    return drop_by_rank(densities, epsilons, rescale=options.rescale, seed=options.seed, name=name)
