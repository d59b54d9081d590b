"""The drawings of one model: what they hold, where the points lie, what the heat map's pixels are."""

import math
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from evaluation.projection import pca, tsne
from evaluation.report_heat import heat_figure, heat_png
from evaluation.report_panels import make_panel
from evaluation.report_scatter import legend, scatter_svg
from tests.evaluation.report_rows import panel


def cloud(n=18, d=5):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def pixels(png):
    """Palette indices of a PNG whose rows are not filtered, and its palette."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    place, chunks = 8, {}
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        kind, content = png[place + 4 : place + 8], png[place + 8 : place + 8 + length]
        assert struct.unpack(">I", png[place + 8 + length : place + 12 + length])[0] == zlib.crc32(kind + content)
        chunks[kind], place = content, place + 12 + length
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    raw = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), dtype=np.uint8).reshape(height, width + 1)
    assert not raw[:, 0].any()
    return raw[:, 1:].astype(int), np.frombuffer(chunks[b"PLTE"], dtype=np.uint8).reshape(-1, 3)


def test_a_panel_holds_the_projections_and_the_distances_also_far_from_the_origin():
    points = cloud() + 1e4
    made = make_panel(points, ["a", "b", "c"] * 6, ["text " * 30] * 18, seed=3)
    np.testing.assert_allclose(made.distances, cdist(points, points), atol=1e-9)
    np.testing.assert_array_equal(made.tsne, tsne(points, seed=3))
    np.testing.assert_array_equal(made.pca, pca(points)[0])
    assert made.labels[:3] == ("a", "b", "c")
    assert all(len(text) <= 48 and text.endswith("…") for text in made.texts)


def test_a_panel_of_collapsed_embeddings_is_drawn():
    made = make_panel(torch.ones(4, 3), ["a", "a", "", "\u200b"], ["1"] * 4)
    assert made.labels == ("a", "a", "(blank)", "(blank)")
    assert not made.distances.any()
    assert made.listed()["pca_shares"] == [None, None]
    assert "<use" in scatter_svg(made.tsne, made, "one", name="t0")
    assert pixels(heat_png(made.distances))[0].tolist() == np.zeros((4, 4)).tolist()


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="labels: expected 18"):
        make_panel(cloud(), ["a"] * 17, ["1"] * 18)
    with pytest.raises(ValueError, match="texts: expected 18"):
        make_panel(cloud(), ["a"] * 18, ["1"] * 17)
    broken = cloud()
    broken[3, 2] = math.inf
    with pytest.raises(ValueError, match="expected finite numbers"):
        make_panel(broken, ["a"] * 18, ["1"] * 18)


def test_points_keep_their_proportions_and_stay_inside():
    made = panel(np.random.default_rng(0))
    drawn = scatter_svg(made.pca, made, "PCA", name="p0")
    spots = np.array([(float(x), float(y)) for x, y in re.findall(r' x="([\d.-]+)" y="([\d.-]+)"', drawn)])
    assert spots.min() >= 11.9
    assert spots.max() <= 228.1
    ours, theirs = cdist(spots, spots), cdist(made.pca, made.pca)
    np.testing.assert_allclose(ours / ours.max(), theirs / theirs.max(), atol=2e-3)
    assert spots[:, 1].argmin() == made.pca[:, 1].argmax()  # up is up


def test_56_families_differ_in_colour_or_shape():
    marks = re.findall(r'href="#(m\d)" class="(c\d)"', legend([f"family {place}" for place in range(56)]))
    assert len(set(marks)) == 56


def test_a_heat_map_has_the_families_in_order_and_is_bright_where_texts_are_far():
    made = make_panel(cloud(6), ["a", "b"] * 3, list("123456"))
    order = [0, 2, 4, 1, 3, 5]
    expected = cdist(cloud(6), cloud(6))[np.ix_(order, order)]
    levels, palette = pixels(heat_png(expected))
    np.testing.assert_array_equal(levels, np.rint(63 * expected / expected.max()))
    assert (np.diff(palette.astype(int).sum(axis=1)) > -4).all()  # brightness rises, up to viridis' own wiggle
    figure = heat_figure(made, "<b>")
    assert re.findall(r"flex:(\d+)", figure) == ["3", "3"]
    assert f"<span>{expected.max():.2f}</span>" in figure
    assert "<b>" not in figure.replace("<b>Distances</b>", "")


def test_many_texts_share_pixels():
    far = np.zeros((500, 500))
    far[:, 250:] = far[250:, :] = 1.0
    levels, _ = pixels(heat_png(far))
    assert levels.shape == (167, 167)
    assert levels[0, 0] == 0
    assert levels[166, 166] == levels[0, 166] == 63
