"""The mathematics of merging as slow float64 loops, for comparison."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def angle_between(a: Tensor, b: Tensor) -> float:
    """Kahan's formula on unit vectors, in float64."""
    u, v = a.double().flatten() / a.double().norm(), b.double().flatten() / b.double().norm()
    return 2 * math.atan2(float((u - v).norm()), float((u + v).norm()))


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Shoemake's formula for the direction, linear interpolation for the length."""
    a, b = a.double(), b.double()
    theta = angle_between(a, b)
    u, v = a / a.norm(), b / b.norm()
    direction = (math.sin((1 - t) * theta) * u + math.sin(t * theta) * v) / math.sin(theta)
    return ((1 - t) * float(a.norm()) + t * float(b.norm())) * direction


def karcher(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Logarithm and exponential maps on whole vectors, not on their Gram matrix."""
    vectors = [tensor.double().flatten() for tensor in tensors]
    units = [vector / vector.norm() for vector in vectors]
    mean = sum((w * u for w, u in zip(weights, units, strict=True)), torch.zeros_like(units[0]))
    mean = mean / mean.norm()
    for _ in range(500):
        step = torch.zeros_like(mean)
        for weight, unit in zip(weights, units, strict=True):
            side = unit - (unit @ mean) * mean
            if float(side.norm()) > 0:
                step += weight * angle_between(mean, unit) * side / side.norm()
        size = float(step.norm())
        if size < 1e-15:
            break
        mean = math.cos(size) * mean + math.sin(size) * step / size
        mean = mean / mean.norm()
    length = sum(w * float(v.norm()) for w, v in zip(weights, vectors, strict=True))
    return (length * mean).reshape(tensors[0].shape)


def linear(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return sum((w * x.double() for w, x in zip(weights, tensors, strict=True)), torch.zeros_like(tensors[0]).double())


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())
