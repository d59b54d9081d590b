"""The (1+1)-CMA-ES, against known optima and against its paper's formulas written out."""

import math

import numpy as np
import pytest
import torch

from merging.evolution import TARGET, Steps, evolve
from merging.front import Candidate, Parameters
from merging.search import explore


def knots(position):
    return Parameters(t=tuple(position))


def run(separation, retention, start, *, floor=0.0, evaluations=200, seed=0):
    """The best that the evolution returns or has seen."""

    def evaluate(parameters):
        return separation(parameters.t), retention(parameters.t)

    first = Candidate(knots(start), *evaluate(knots(start)))
    return explore(
        evolve(first, start, knots, floor=floor, step=0.2, seed=seed), evaluate, evaluations=evaluations
    ), first


def cigar(centre):
    """Long along the diagonal: a covariance has to be learnt."""

    def value(t):
        gap = [a - b for a, b in zip(t, centre, strict=True)]
        along = sum(gap) / math.sqrt(len(gap))
        return -(along**2 + 50 * (sum(g * g for g in gap) - along**2))

    return value


@pytest.mark.parametrize("seed", range(3))
def test_it_finds_a_peak_inside_the_box(seed):
    found, _ = run(cigar((0.3, 0.7, 0.6)), lambda t: 1.0, (0.5, 0.5, 0.5), seed=seed)
    best = max(found, key=lambda candidate: candidate.separation)
    assert max(abs(a - b) for a, b in zip(best.parameters.t, (0.3, 0.7, 0.6), strict=True)) < 0.03


def test_it_finds_a_peak_in_a_corner_of_the_box():
    found, _ = run(sum, lambda t: 1.0, (0.5, 0.5))
    assert max(candidate.separation for candidate in found) > 1.99
    assert all(0 <= t <= 1 for candidate in found for t in candidate.parameters.t)


@pytest.mark.parametrize("seed", range(3))
def test_it_follows_the_floor_to_the_best_point_on_it(seed):
    """Maximise x + 2y where x + y <= 0.8: the answer is (0, 0.8), and it lies on two borders."""
    found, _ = run(lambda t: t[0] + 2 * t[1], lambda t: 1.8 - sum(t), (0.4, 0.2), floor=1.0, seed=seed)
    best = max((c for c in found if c.retention >= 1.0), key=lambda candidate: candidate.separation)
    assert best.separation > 1.5


def test_from_below_the_floor_it_climbs_to_it():
    found, first = run(lambda t: -t[0], lambda t: sum(t) / 2, (0.1, 0.1), floor=0.5)
    assert first.retention < 0.5
    assert any(candidate.retention >= 0.5 for candidate in found)


def test_it_ends_when_the_steps_are_small():
    found, _ = run(lambda t: -((t[0] - 0.5) ** 2), lambda t: 1.0, (0.5,), evaluations=10_000)
    assert len(found) < 300


def test_a_success_adapts_size_and_covariance_as_in_the_paper():
    generator = torch.Generator().manual_seed(0)
    steps = Steps(torch.eye(3, dtype=torch.float64), 0.2)
    factor, path, success, size = np.eye(3), np.zeros(3), TARGET, 0.2
    for _ in range(5):
        drawn = torch.randn(3, generator=generator, dtype=torch.float64)
        steps.learn(drawn, succeeded=True)
        d, c, c_cov = 3, 2 / 5, 2 / 15
        success = (1 - 1 / 12) * success + 1 / 12
        size = size * math.exp(1 / (1 + d / 2) * (success - TARGET / (1 - TARGET) * (1 - success)))
        path = (1 - c) * path + math.sqrt(c * (2 - c)) * drawn.numpy()
        # what the factor's update means: C becomes (1 - c_cov) C + c_cov s s'
        covariance = (1 - c_cov) * factor @ factor.T + c_cov * np.outer(path, path)
        factor = np.linalg.cholesky(covariance)
    np.testing.assert_allclose((steps.factor @ steps.factor.T).numpy(), covariance, rtol=1e-12)
    assert steps.size == pytest.approx(size, rel=1e-12)
