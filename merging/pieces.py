"""How a tensor is cut: chunks that stay in the processor's cache, and blocks of chunks for one worker.

A tensor is a matrix of rows (its first dimension) by columns (the rest); chunks are whole rows.  Their
borders depend on the shape alone, never on the memory allowed or the number of workers, so that results do
not either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from merging.sources import as_matrix

CHUNK = 2**18
"""Elements of a chunk: 2 MiB in float64, so that a few inputs stay in the cache, and calls are few."""

BLOCK = 8
"""Chunks that one worker takes at a time."""

Rows = tuple[int, int]


def row_ranges(shape: Sequence[int]) -> Iterator[Rows]:
    """Yield (start, stop) over the rows of a tensor, about ``CHUNK`` elements at a time, at least one row.

    >>> list(row_ranges((5, 2**17)))
    [(0, 2), (2, 4), (4, 5)]
    """
    rows, _ = as_matrix(shape)
    step = rows_of_a_chunk(shape)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def rows_of_a_chunk(shape: Sequence[int]) -> int:
    """Return how many rows a chunk has; the last one may have fewer."""
    return max(1, CHUNK // max(1, as_matrix(shape)[1]))
