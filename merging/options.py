"""What a merge method may be told besides weights: one frozen record, the same for every tensor of a batch.

Weights, ``t`` and everything else are settled for each tensor by ``Rule.at``; tensors with equal options are
solved together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Norm = Literal["interpolate", "base", "geometric"]
Antipodal = Literal["error", "linear", "base"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settled parameters of one tensor.  A method reads those that its row in METHODS names."""

    norm: Norm = "interpolate"
    """Length of a result whose direction is found apart."""
    antipodal: Antipodal = "error"
    """What to do where no mean direction exists."""
    scale: float = 1.0
    """Factor of the merged task vector (``lambda`` in mergekit's recipes)."""
    density: tuple[float, ...] = ()
    """One per input: the share of elements that is kept, in [0, 1]."""
    gamma: tuple[float, ...] = ()
    """One per input: the share of the largest elements that breadcrumbs removes, in [0, 1)."""
    epsilon: tuple[float, ...] = ()
    """One per input: half the spread of DELLA's keep probabilities; density +- epsilon lies inside (0, 1)."""
    normalize: bool = False
    """Divide the merged task vector by the sum of the weights that took part (element by element under a sign vote)."""
    rescale: bool = False
    """After dropping elements, bring a task vector back to its length in the L1 norm (DARE: divide by the density)."""
    select_topk: float = 1.0
    """SCE: the share of elements with the largest variance that is merged, in [0, 1]."""
    seed: int = 0
    """Of random masks, together with the tensor's name and the input's place."""
