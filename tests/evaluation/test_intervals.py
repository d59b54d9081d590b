"""Intervals: coverage on simulated suites, disjoint parts of whole blocks, and what a bootstrap would have said."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, t
from sklearn.metrics import silhouette_score as sklearn_silhouette

from evaluation import fresh_window_interval, jackknife_spread, silhouette_score
from evaluation.intervals import _Windows

K, D = 6, 8


def quick_silhouettes(points, labels):
    """scikit-learn's number for each suite of a (suites, n, d) tensor, in a few lines for the simulations below."""
    codes = torch.tensor(labels)
    one_hot = torch.nn.functional.one_hot(codes).double()
    sums, counts = torch.cdist(points, points) @ one_hot, one_hot.sum(dim=0)
    index = codes[None, :, None].expand(len(points), -1, 1)
    within = sums.gather(2, index)[:, :, 0] / (counts[codes] - 1)
    between = (sums / counts).scatter(2, index, torch.inf).amin(dim=2)
    return ((between - within) / torch.maximum(within, between)).mean(dim=1)


def quick_silhouette(points, labels):
    return float(quick_silhouettes(points[None], labels)[0])


class World:
    """Suites of Gaussian clusters around fixed centres; `spread` is the distance between centres over the noise."""

    def __init__(self, spread, seed=0):
        self.generator = torch.Generator().manual_seed(seed)
        self.centres = spread * torch.randn(K, D, generator=self.generator, dtype=torch.float64)

    def suites(self, count, per_label):
        labels = [label for label in range(K) for _ in range(per_label)]
        size = (count, len(labels), D)
        noise = torch.randn(size, generator=self.generator, dtype=torch.float64)
        return self.centres[labels] + noise, labels

    def suite(self, per_label):
        points, labels = self.suites(1, per_label)
        return points[0], labels

    def mean_score(self, per_label, draws):
        return np.mean([float(quick_silhouettes(*self.suites(50, per_label)).mean()) for _ in range(draws // 50)])


def covers(interval, truth):
    return interval.low <= truth <= interval.high


def coverage_of_another_suite(spread, count, truth_draws):
    """A suite of 4 windows a label, its interval from 36 fresh ones (9 replicates)."""
    world = World(spread, seed=int(100 * spread))
    truth, covered = world.mean_score(4, truth_draws), 0
    for seed in range(count):
        observed = quick_silhouette(*world.suite(4))
        points, labels = world.suite(36)
        interval = fresh_window_interval(
            points, labels, per_label=4, statistic=quick_silhouette, observed=observed, seed=seed
        )
        covered += covers(interval, truth)
    return covered


def coverage_of_the_suite_itself(spread, count, per_label, windows, truth_draws):
    world = World(spread, seed=1 + int(100 * spread))
    truth, covered = world.mean_score(windows, truth_draws), 0
    for seed in range(count):
        points, labels = world.suite(windows)
        interval = fresh_window_interval(points, labels, per_label=per_label, statistic=quick_silhouette, seed=seed)
        covered += covers(interval, truth)
    return covered


def is_between_93_and_97_percent(covered, count):
    return binom.ppf(0.001, count, 0.93) <= covered <= binom.ppf(0.999, count, 0.97)


def test_the_quick_silhouette_is_scikit_learns():
    points, labels = World(1.0).suite(5)
    assert quick_silhouette(points, labels) == pytest.approx(sklearn_silhouette(points.numpy(), labels), abs=1e-7)


def test_95_percent_intervals_of_another_suite_cover_95_percent():
    covered = sum(coverage_of_another_suite(spread, 100, truth_draws=2000) for spread in (0.0, 1.0))
    assert is_between_93_and_97_percent(covered, 200)


def test_95_percent_intervals_of_the_suite_itself_cover_95_percent():
    covered = sum(coverage_of_the_suite_itself(spread, 80, 2, 12, truth_draws=1000) for spread in (0.5, 1.0))
    assert is_between_93_and_97_percent(covered, 160)


@pytest.mark.slow
def test_coverage_at_every_separation():
    another = [coverage_of_another_suite(spread, 1000, truth_draws=20000) for spread in (0.0, 0.3, 0.6, 1.0, 2.0)]
    itself = [
        coverage_of_the_suite_itself(spread, 1000, 4, 36, truth_draws=3000) for spread in (0.0, 0.3, 0.6, 1.0, 2.0)
    ]
    for covered in (another, itself):
        assert all(is_between_93_and_97_percent(number, 1000) for number in covered)
        assert 0.93 < sum(covered) / 5000 < 0.97


def test_the_interval_of_another_suite_is_students():
    points, labels = World(1.0).suite(8)
    interval = fresh_window_interval(points, labels, per_label=2, observed=0.3, level=0.9)
    parts = _Windows.of(points, labels, None, silhouette_score).suites(2, 0)
    scores = [sklearn_silhouette(points[part].numpy(), np.array(labels)[part]) for part in parts]
    assert interval.replicates == len(parts) == 4
    assert interval.sd == pytest.approx(np.std(scores, ddof=1))
    assert (interval.low, interval.high) == pytest.approx(t.interval(0.9, 3, loc=0.3, scale=interval.sd))
    assert (interval.level, interval.per_label, interval.reason) == (0.9, 2, None)


def test_the_standard_error_of_a_mean_is_the_textbooks():
    """A mean has no quadratic part: with one window a part it is s / sqrt(n)."""
    points = torch.randn(24, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    interval = fresh_window_interval(points, [0] * 24, per_label=2, statistic=lambda x, labels: float(x.mean()))
    parts = _Windows.of(points, [0] * 24, None, silhouette_score).parts(2, 0)
    means = [float(points[part].mean()) for part in parts]
    assert interval.replicates == 12
    assert interval.sd == pytest.approx(np.std(means, ddof=1) / math.sqrt(12))
    assert (interval.low + interval.high) / 2 == pytest.approx(float(points.mean()))


def test_a_bootstrap_would_have_lied():
    """Windows drawn twice are at distance 0 from themselves: the trap that this module exists for."""
    points, labels = World(0.0, seed=3).suite(4)
    observed, random, scores = silhouette_score(points, labels), np.random.default_rng(0), []
    for _ in range(40):
        rows = np.concatenate([4 * label + random.integers(0, 4, 4) for label in range(K)])
        scores.append(silhouette_score(points[rows], np.array(labels)[rows]))
    assert observed < 0 < np.mean(scores)
    interval = fresh_window_interval(*World(0.0, seed=4).suite(20), per_label=4, observed=observed)
    assert covers(interval, World(0.0, seed=5).mean_score(4, 300))
    spread = jackknife_spread(points, labels)
    assert spread["low"] <= observed <= spread["high"] < 0


def test_jackknife_by_hand():
    points, labels = World(1.0).suite(4)
    blocks = [f"{label}:{row % 4 // 2}" for row, label in enumerate(labels)]
    scores = []
    for block in dict.fromkeys(blocks):
        rows = [row for row in range(24) if blocks[row] != block]
        scores.append(sklearn_silhouette(points[rows].numpy(), np.array(labels)[rows]))
    spread = jackknife_spread(points, labels, blocks=blocks)
    assert spread["deleted"] == 12
    assert (spread["low"], spread["high"]) == pytest.approx((min(scores), max(scores)))
    assert spread["sd"] == pytest.approx(math.sqrt(11 / 12 * np.sum((scores - np.mean(scores)) ** 2)))


@given(seed=st.integers(0, 99), size=st.integers(1, 3), per_label=st.integers(2, 5), copies=st.integers(3, 9))
def test_parts_are_disjoint_and_hold_whole_blocks(seed, size, per_label, copies):
    labels = [label for label in range(3) for _ in range(size * copies)]
    blocks = [row // size for row in range(len(labels))]
    windows = _Windows.of(torch.zeros(len(labels), 1), labels, blocks, silhouette_score)
    suites, parts = windows.suites(per_label, seed), windows.parts(per_label, seed)
    for cut in (suites, parts):
        rows = [row for part in cut for row in part]
        assert len(rows) == len(set(rows))
        held = [{blocks[row] for row in part} for part in cut]
        assert sum(len(part) for part in held) == len(set().union(*held))
    for suite in suites:
        assert [sum(labels[row] == label for row in suite) for label in range(3)] == [per_label] * 3
    assert len(suites) == (size * copies // per_label if per_label % size == 0 and size == 1 else len(suites))
    if parts:
        assert sum(map(len, parts)) == len(labels)  # nothing is left over, or the variance would be too small
        counts = [sum(labels[row] == label for row in part) for part in parts for label in range(3)]
        assert max(counts) - min(counts) <= size


def test_a_block_of_several_labels_stays_together():
    labels, blocks = [0, 1] * 24, [row // 4 for row in range(48)]
    windows = _Windows.of(torch.zeros(48, 1), labels, blocks, silhouette_score)
    for part in [*windows.suites(4, 0), *windows.parts(4, 0)]:
        assert all(sum(blocks[row] == block for row in part) == 4 for block in {blocks[row] for row in part})
    assert len(windows.suites(4, 0)) == len(windows.parts(4, 0)) == 6


def test_many_windows_are_cut_into_few_parts():
    points, labels = World(1.0).suite(60)
    assert fresh_window_interval(points, labels, per_label=2, statistic=quick_silhouette).replicates == 12
    assert fresh_window_interval(points, labels, per_label=2, statistic=quick_silhouette, observed=0.0).replicates == 30


def test_same_seed_same_interval():
    points, labels = World(1.0).suite(12)
    first = fresh_window_interval(points, labels, per_label=4, seed=3)
    assert fresh_window_interval(points, labels, per_label=4, seed=3) == first
    assert fresh_window_interval(points, labels, per_label=4, seed=4).sd != first.sd


def check_undefined(interval, reason):
    assert all(math.isnan(number) for number in (interval.low, interval.high, interval.sd))
    assert reason in interval.reason


def test_too_few_windows_have_no_interval():
    points, labels = World(1.0).suite(8)
    for observed in (None, 0.1):
        check_undefined(fresh_window_interval(points, labels, per_label=4, observed=observed), "2 disjoint parts of 4")
        check_undefined(fresh_window_interval(points, labels, per_label=9, observed=observed), "needs 3")
    blocks = [row // 4 for row in range(48)]
    check_undefined(fresh_window_interval(points, labels, blocks=blocks, per_label=2), "whole blocks give 2")
    check_undefined(fresh_window_interval(points, labels, blocks=blocks, per_label=2, observed=0.0), "blocks give 0")


def test_an_undefined_score_has_no_interval():
    points, labels = World(1.0).suite(8)
    check_undefined(fresh_window_interval(points, labels, per_label=2, observed=math.nan), "the suite is undefined")
    check_undefined(fresh_window_interval(torch.ones(48, 3), labels, per_label=2), "the suite is undefined")
    check_undefined(fresh_window_interval(torch.ones(48, 3), labels, per_label=2, observed=0.1), "a part of it is")
    check_undefined(fresh_window_interval(points, [0] * 48, per_label=2), "the suite is undefined")


def test_an_undefined_spread_is_none_with_its_reason():
    points, labels = World(1.0).suite(4)
    one = jackknife_spread(points, labels, blocks=labels)
    assert one["sd"] is one["low"] is one["high"] is None
    assert one["high_reason"] == "a label has one block only"
    assert one["deleted"] == 6
    collapsed = jackknife_spread(torch.ones(24, 3), labels)
    assert collapsed["sd"] is collapsed["low"] is None
    assert "undefined without one of the blocks" in collapsed["low_reason"]


def test_bad_input_is_refused():
    points, labels = World(1.0).suite(8)
    with pytest.raises(ValueError, match="per_label: expected at least 2 windows a label, got 1"):
        fresh_window_interval(points, labels, per_label=1)
    for level in (0.0, 1.0, 95.0):
        with pytest.raises(ValueError, match="level: expected a share between 0 and 1"):
            fresh_window_interval(points, labels, per_label=2, level=level)
    with pytest.raises(ValueError, match="blocks: expected 48"):
        fresh_window_interval(points, labels, per_label=2, blocks=[1, 2])
    with pytest.raises(ValueError, match="labels: expected 48"):
        jackknife_spread(points, labels[:5])
    points[0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN or infinity in 1 of 48 rows"):
        jackknife_spread(points, labels)
