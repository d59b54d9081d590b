"""Sums of task vectors: with weights, towards the base, or as far from it as their angles allow.

Dimensions: g groups, n inputs.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float64
from torch import Tensor

from merging.gram import Gram
from merging.options import Options
from merging.solution import Solution
from merging.spherical import ANTIPODAL, karcher


def task_arithmetic(gram: Gram, weights: Float64[Tensor, "g n"], options: Options) -> Solution:
    """Return ``scale * weights``: the base plus a weighted sum of task vectors.

    With ``options.normalize`` the weights are divided by their sum first; undefined, and refused, where that
    is zero.

    Reference: Ilharco et al. 2023, Editing models with task arithmetic, arXiv:2212.04089.
    """
    if not options.normalize:
        return Solution(options.scale * weights)
    total = weights.sum(-1, keepdim=True)
    refused = total.abs() <= 1e-12 * weights.abs().sum(-1, keepdim=True)
    return Solution(
        options.scale * weights / total.where(~refused, 1),
        refused=refused.squeeze(-1),
        reason="expected weights with a sum other than zero under --normalize, got one of zero; change the weights",
    )


def warp(gram: Gram, weights: Float64[Tensor, "g n"], options: Options) -> Solution:
    """Return the Karcher mean of the task vectors, scaled by ``options.scale``: 0 is the base, 1 the mean.

    Undefined where the Karcher mean is; such groups follow ``options.antipodal``, and are scaled too.

    Reference: Rame et al. 2024, WARP, arXiv:2406.16768 (spherical mean, then towards the initialisation).
    """
    solution = karcher(gram, weights, options)
    return replace(solution, coefficients=options.scale * solution.coefficients)


def model_stock(gram: Gram, weights: Float64[Tensor, "g n"], options: Options) -> Solution:
    """Return the plain mean of the task vectors times t = n cos / (1 + (n - 1) cos), two inputs or more.

    cos is the mean cosine over the pairs of task vectors.  t is 0 for orthogonal task vectors and 1 for
    parallel ones; a negative cosine gives a negative t, which the note ``beyond the base`` reports.  A zero
    task vector has cosine 0 with every other.  Undefined where the denominator is at most 5e-7, as the unit
    task vectors balance (it is the square of their sum, over n; of two, where pi - theta < 1e-3); the base is
    kept there, with the note ``no stock: base``.

    Reference: Jang et al. 2024, Model Stock, arXiv:2403.19522, equation for n models.

    >>> products = torch.tensor([[[4.0, 2.0], [2.0, 4.0]]], dtype=torch.float64)
    >>> angles = torch.tensor([[[0, 1], [1, 0]]], dtype=torch.float64) * torch.pi / 3
    >>> half = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    >>> model_stock(Gram(products, angles), half, Options()).coefficients  # t = 2/3, over two
    tensor([[0.3333, 0.3333]], dtype=torch.float64)
    """
    n = weights.shape[-1]
    assert n >= 2, "model stock is of two inputs or more"
    eye = torch.eye(n, dtype=torch.bool, device=weights.device)
    cosines = gram.angles.cos().masked_fill(eye | gram.angles.isnan(), 0.0)
    cosine = cosines.sum(-1).sum(-1) / (n * (n - 1))
    denominator = 1 + (n - 1) * cosine
    kept = denominator <= ANTIPODAL**2 / 2
    t = (n * cosine / denominator.where(~kept, 1)).masked_fill(kept, 0.0)
    zero = gram.norms == 0
    notes = {
        "zero": zero.all(-1),
        "zero input": zero.any(-1) & ~zero.all(-1),
        "no stock: base": kept,
        "beyond the base": t < 0,
    }
    return Solution((t / n).unsqueeze(-1).expand_as(weights).clone(), notes)
