"""The element methods on whole tensors, as slow loops over plain numbers, for comparison; and a walk to feed ours.

A matrix is a list of its elements in walk order; the rows matter to DELLA alone.
"""

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import torch
from hypothesis import strategies as st
from torch import Tensor

Vector = list[float]


def walk_over(vectors: Tensor, rows: int) -> Callable[[], Iterator[Tensor]]:
    """Cut (n, r, c) into chunks of ``rows`` rows that share one buffer, which is spoiled after each."""

    def walk() -> Iterator[Tensor]:
        buffer = torch.empty(len(vectors), rows, vectors.shape[2])
        for start in range(0, vectors.shape[1], rows):
            part = vectors[:, start : start + rows]
            chunk = buffer[:, : part.shape[1]]
            chunk.copy_(part)
            yield chunk
            assert torch.equal(chunk, part), "a chunk was written to"
            buffer.fill_(torch.nan)

    return walk


def run(combine: Callable[[int, Tensor], Tensor], walk: Callable[[], Iterator[Tensor]]) -> Tensor:
    """Merge every chunk, the last first: chunks are independent."""
    chunks = [chunk.clone() for chunk in walk()]
    merged = [combine(index, chunks[index]) for index in reversed(range(len(chunks)))]
    return torch.cat(merged[::-1])


@st.composite
def matrices(draw: st.DrawFn, inputs: int | None = None) -> tuple[Tensor, int]:
    """Return (n, r, c) task vectors of small integers, where equal magnitudes abound, and the rows of a chunk."""
    n = inputs or draw(st.integers(1, 4))
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    values = draw(st.lists(st.integers(-3, 3), min_size=n * rows * columns, max_size=n * rows * columns))
    return torch.tensor(values, dtype=torch.float32).reshape(n, rows, columns), draw(st.integers(1, rows))


def keep_largest(vector: Vector, density: float) -> Vector:
    if density == 0:
        return [0.0] * len(vector)
    order = sorted(range(len(vector)), key=lambda i: (-abs(vector[i]), i))
    kept = set(order[: max(1, int(density * len(vector)))])
    return [x if i in kept else 0.0 for i, x in enumerate(vector)]


def keep_middle(vector: Vector, density: float, gamma: float) -> Vector:
    if density == 1:
        return vector
    size = len(vector)
    order = sorted(range(size), key=lambda i: (abs(vector[i]), i))
    target = int(density * size)
    bottom = max(0, size - target - int(gamma * size))
    kept = set(order[bottom : bottom + target])
    return [x if i in kept else 0.0 for i, x in enumerate(vector)]


def restore_length(vector: Vector, trimmed: Vector) -> Vector:
    before, after = sum(map(abs, vector)), sum(map(abs, trimmed))
    return [x * before / after for x in trimmed] if after > 0 else trimmed


def add(trimmed: Sequence[Vector], weights: Sequence[float], normalize: bool, scale: float) -> Vector:
    total = sum(weights) if normalize else 1.0
    return [scale * sum(w * x for w, x in zip(weights, xs, strict=True)) / total for xs in zip(*trimmed, strict=True)]


def elect(trimmed: Sequence[Vector], weights: Sequence[float], normalize: bool, scale: float) -> Vector:
    merged = []
    for xs in zip(*trimmed, strict=True):
        votes = [Fraction(w) * Fraction(x) for w, x in zip(weights, xs, strict=True)]
        sign = 1 if sum(votes) >= 0 else -1
        agree = [i for i, vote in enumerate(votes) if vote * sign > 0]
        divisor = sum(weights[i] for i in agree) if normalize else 1.0
        merged.append(scale * float(sum(votes[i] for i in agree)) / (divisor or 1.0))
    return merged


def sce(vectors: Sequence[Vector], share: float) -> Vector:
    columns = [[Fraction(x) for x in xs] for xs in zip(*vectors, strict=True)]
    if share < 1:
        means = [sum(xs) / len(xs) for xs in columns]
        spread = [sum((x - m) ** 2 for x in xs) / len(xs) for xs, m in zip(columns, means, strict=True)]
        order = sorted(range(len(columns)), key=lambda i: (-spread[i], i))
        kept = set(order[: int(share * sum(s > 0 for s in spread))])
        columns = [xs if i in kept else [Fraction(0)] * len(xs) for i, xs in enumerate(columns)]
    energy = [sum(x * x for x in xs) for xs in zip(*columns, strict=True)]
    merged = []
    for xs in columns:
        sign = 1 if sum(xs) >= 0 else -1
        agree = [i for i, x in enumerate(xs) if x * sign > 0]
        total = sum(energy[i] for i in agree)
        merged.append(float(sum(energy[i] * xs[i] for i in agree) / total) if agree else 0.0)
    return merged
