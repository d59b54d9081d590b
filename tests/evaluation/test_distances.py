"""Distances against coordinates: tiles, near duplicates, and products in float32 where they are good enough."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation import distances
from evaluation.distances import distance_tiles, half_tiles, pairwise_distances, squared_distances


def exact(points, others=None):
    others = points if others is None else others
    return torch.cdist(points, others, compute_mode="donot_use_mm_for_euclid_dist")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assembled(points, order, ends=None):
    """The whole matrix that `half_tiles` gives half of."""
    n = len(points)
    ends = [n] if ends is None else ends
    whole = torch.full((n, n), torch.nan, dtype=torch.float64)
    for down, across, tile in half_tiles(points, order, ends):
        whole[down, across] = tile
        whole[across, down] = tile.T.double()
    return whole


@pytest.fixture
def short(monkeypatch):
    """Small tiles, and products in float32 from the first point on."""
    monkeypatch.setattr(distances, "LARGE", 1)
    monkeypatch.setattr(distances, "TILE_ELEMENTS", 2 * 16**2)


@given(seed=st.integers(0, 2**16), n=st.integers(1, 25), elements=st.integers(20, 400))
@settings(max_examples=40, deadline=None)
def test_tiles_cover_the_matrix(seed, n, elements):
    points = normal(n, 3, seed=seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distances, "TILE_ELEMENTS", elements)
        strips = torch.cat([tile for _, tile in distance_tiles(points)])
        ends = sorted({*torch.randint(1, n + 1, (3,), generator=torch.Generator().manual_seed(seed)).tolist(), n})
        halves = assembled(points, order, ends)
    torch.testing.assert_close(strips, exact(points), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(halves, exact(points)[order][:, order], rtol=1e-9, atol=1e-12)


def test_near_duplicates_keep_their_digits():
    points = normal(6, 5)
    points[1] = points[0] + 1e-9
    torch.testing.assert_close(pairwise_distances(points, points), exact(points), rtol=1e-9, atol=0.0)
    torch.testing.assert_close(
        squared_distances(points[:2], points), exact(points[:2], points) ** 2, rtol=1e-9, atol=0.0
    )


def test_products_in_float32_are_right_to_their_rounding(short):
    points = normal(70, 48)
    found = assembled(points, torch.arange(70))
    torch.testing.assert_close(found, exact(points), rtol=1e-6, atol=0.0)
    assert not torch.equal(found, pairwise_distances(points, points)), "float32 was not used"


@pytest.mark.parametrize("ends", [[60], [20, 40, 60]], ids=["not told", "told"])
@pytest.mark.parametrize("tightness", [1e-2, 1e-5, 1e-7])
def test_tight_clusters_far_apart_keep_their_digits(short, tightness, ends):
    centres = 100 * normal(3, 24, seed=1)
    points = centres.repeat_interleave(20, dim=0) + tightness * normal(60, 24)
    found = assembled(points - points.mean(dim=0), torch.arange(60), ends)
    expected = exact(points - points.mean(dim=0))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0.0)


def test_equal_rows_are_exactly_zero_apart(short):
    points = normal(12, 8).repeat(4, 1)
    found = assembled(points, torch.arange(48))
    assert bool((found[exact(points) == 0] == 0).all())
    torch.testing.assert_close(found, exact(points), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("scale", [1e-20, 1e30])
def test_numbers_beyond_float32_are_taken_in_float64(short, scale):
    points = scale * normal(40, 8)
    torch.testing.assert_close(assembled(points, torch.arange(40)), exact(points), rtol=1e-9, atol=0.0)


def test_products_of_less_than_float32_are_noticed(short, monkeypatch):
    """As after ``torch.set_float32_matmul_precision("medium")`` where it has an effect."""
    points, product = normal(40, 48), torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, *, out: out.copy_(product(a.bfloat16(), b.bfloat16())))
    torch.testing.assert_close(assembled(points, torch.arange(40)), exact(points), rtol=1e-9, atol=0.0)


def test_tiles_keep_to_clusters():
    blocks = distances._blocks([3, 5, 9, 40, 41], 10)
    assert [(block.start, block.stop) for block in blocks] == [(0, 9), (9, 17), (17, 25), (25, 33), (33, 40), (40, 41)]
