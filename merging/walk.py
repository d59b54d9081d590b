"""What an element method is given and gives: a walk over a tensor's task vectors, and a function of its chunks.

A tensor may be far larger than what a merge may hold, so methods that look at single elements see it chunk by
chunk, as often as they ask for: whole rows of a matrix (a vector is one row), at borders that depend on its
shape alone.  What they find out is small; what is left of an element depends on its chunk and on that.

Dimensions: n inputs, r rows of a chunk, c columns of the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from jaxtyping import Float32
from torch import Tensor

Walk = Callable[[], Iterator[Float32[Tensor, "n r c"]]]
"""Start a fresh walk over the n task vectors.  The buffer is reused: a chunk is valid until the next one."""

Trim = Callable[[int, Float32[Tensor, "n r c"]], Float32[Tensor, "n r c"]]
"""(index of the chunk in the walk, chunk) -> the task vectors after dropping elements."""

Combine = Callable[[int, Float32[Tensor, "n r c"]], Float32[Tensor, "r c"]]
"""(index of the chunk in the walk, chunk) -> the merged task vector; chunks may come in any order."""
