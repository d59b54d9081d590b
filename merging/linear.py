"""The weighted average; with equal weights the plain soup (Wortsman et al. 2022, arXiv:2203.05482).

Dimensions: n inputs.
"""

from __future__ import annotations

from jaxtyping import Float64
from torch import Tensor

from merging.gram import Gram
from merging.solution import Solution


def linear(gram: Gram, weights: Float64[Tensor, " n"], *, norm: str, antipodal: str) -> Solution:
    """Return the weights themselves: an average needs neither angles nor a norm rule."""
    return Solution(weights)
