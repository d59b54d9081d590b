"""The mathematics of merging as slow float64 loops on whole vectors, for comparison."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from merging.gram import Gram


def angle_between(a: Tensor, b: Tensor) -> float:
    """Kahan's formula on unit vectors, in float64."""
    u, v = a.double().flatten() / a.double().norm(), b.double().flatten() / b.double().norm()
    return 2 * math.atan2(float((u - v).norm()), float((u + v).norm()))


def gram_of(*groups: Sequence[Tensor] | Tensor, base_norms: Tensor | None = None) -> Gram:
    """The Gram matrices of groups of vectors, with angles right to the last digits."""
    products, angles = [], []
    for group in groups:
        vectors = [vector.double().flatten() for vector in group]
        products.append(torch.stack([torch.stack([a @ b for b in vectors]) for a in vectors]))
        rows = [[0.0 if i == j else _angle(a, b) for j, b in enumerate(vectors)] for i, a in enumerate(vectors)]
        angles.append(torch.tensor(rows, dtype=torch.float64))
    return Gram(torch.stack(products), torch.stack(angles), base_norms)


def scattered(count: int, spread: float, seed: int, size: int = 9) -> tuple[Tensor, Tensor]:
    """Vectors around a direction with norms over a factor of ten, and weights for one group."""
    generator = torch.Generator().manual_seed(seed)
    vectors = spread * torch.randn(count, size, dtype=torch.float64, generator=generator)
    vectors[:, 0] += 1
    norms = 10 ** torch.rand(count, 1, dtype=torch.float64, generator=generator)
    weights = torch.rand(1, count, dtype=torch.float64, generator=generator) + 0.05
    return norms * vectors / vectors.norm(dim=1, keepdim=True), weights / weights.sum()


def _angle(a: Tensor, b: Tensor) -> float:
    return angle_between(a, b) if bool(a.any()) and bool(b.any()) else math.nan


def length(tensors: Sequence[Tensor], weights: Sequence[float], norm: str = "interpolate") -> float:
    norms = [float(tensor.double().norm()) for tensor in tensors]
    if norm == "geometric":
        return math.prod(n**w for n, w in zip(norms, weights, strict=True))
    return sum(w * n for w, n in zip(weights, norms, strict=True))


def arc(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Shoemake's formula on the directions of a and b."""
    theta = angle_between(a, b)
    u, v = a / a.norm(), b / b.norm()
    return (math.sin((1 - t) * theta) * u + math.sin(t * theta) * v) / math.sin(theta)


def slerp(a: Tensor, b: Tensor, t: float, norm: str = "interpolate") -> Tensor:
    """Shoemake's formula for the direction, linear interpolation for the length."""
    return length([a, b], [1 - t, t], norm) * arc(a.double(), b.double(), t)


def karcher(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Logarithm and exponential maps on whole vectors, not on their Gram matrix."""
    vectors = [tensor.double().flatten() for tensor in tensors]
    units = [vector / vector.norm() for vector in vectors]
    mean = sum((w * u for w, u in zip(weights, units, strict=True)), torch.zeros_like(units[0]))
    mean = mean / mean.norm()
    for _ in range(500):
        step = pull(units, weights, mean)
        size = float(step.norm())
        if size < 1e-15:
            break
        mean = math.cos(size) * mean + math.sin(size) * step / size
        mean = mean / mean.norm()
    return (length(tensors, weights) * mean).reshape(tensors[0].shape)


def pull(tensors: Sequence[Tensor], weights: Sequence[float], mean: Tensor) -> Tensor:
    """The negative gradient of half the weighted sum of squared angles to the direction of ``mean``."""
    mean = mean / mean.norm()
    total = torch.zeros_like(mean)
    for weight, tensor in zip(weights, tensors, strict=True):
        unit = tensor / tensor.norm()
        side = unit - (unit @ mean) * mean
        if float(side.norm()) > 0:
            total += weight * angle_between(mean, unit) * side / side.norm()
    return total


def hierarchical(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Neighbours by slerp, then the results, at the interpolated length."""
    level = [(tensor.double(), weight) for tensor, weight in zip(tensors, weights, strict=True)]
    while len(level) > 1:
        above = []
        for k in range(0, len(level) - 1, 2):
            (a, left), (b, right) = level[k], level[k + 1]
            above.append((arc(a, b, right / (left + right)), left + right))
        if len(level) % 2:
            above.append(level[-1])
        level = above
    return length(tensors, weights) * level[0][0] / level[0][0].norm()


def sequential(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The running mean, at the interpolated length."""
    mean = tensors[0].double()
    for k in range(1, len(tensors)):
        mean = arc(mean, tensors[k].double(), weights[k] / sum(weights[: k + 1]))
    return length(tensors, weights) * mean / mean.norm()


def linear(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return sum((w * x.double() for w, x in zip(weights, tensors, strict=True)), torch.zeros_like(tensors[0]).double())


def model_stock(deltas: Sequence[Tensor]) -> Tensor:
    """Equation of the paper: the angle is the mean over pairs, the centre is the plain mean."""
    n = len(deltas)
    cosines = [math.cos(angle_between(deltas[i], deltas[j])) for i in range(n) for j in range(i)]
    cosine = sum(cosines) / len(cosines)
    return n * cosine / (1 + (n - 1) * cosine) * linear(deltas, [1 / n] * n)


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())
