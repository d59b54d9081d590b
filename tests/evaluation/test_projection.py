"""t-SNE and its picture, and principal axes."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from evaluation.projection import figure_png, pca, projection_figure, tsne


def cloud(n, d=6):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("n", "perplexity"), [(60, 30), (49, 10), (24, 10), (10, 3.0), (4, 1.0)])
def test_it_is_scikit_learns_with_the_papers_settings(n, perplexity):
    points = cloud(n)
    centred = (points - points.mean(dim=0)).numpy()
    expected = TSNE(2, perplexity=perplexity, max_iter=1000, init="pca", random_state=3).fit_transform(centred)
    np.testing.assert_allclose(tsne(points, seed=3), expected)


def test_same_seed_same_plane():
    np.testing.assert_array_equal(tsne(cloud(12)), tsne(cloud(12)))


@pytest.mark.parametrize("n", [3, 10, 11])
def test_small_and_narrow_embeddings_are_projected(n):
    plane = tsne(cloud(n, d=1))
    assert plane.shape == (n, 2)
    assert np.isfinite(plane).all()


def test_collapsed_embeddings_are_one_point():
    assert not tsne(torch.ones(8, 4)).any()
    assert figure_png(projection_figure(torch.ones(8, 4), ["a", "b"] * 4, "collapsed")).startswith(b"\x89PNG")


def test_two_texts_are_refused():
    with pytest.raises(ValueError, match="expected at least 3 texts for t-SNE, got 2"):
        tsne(cloud(2))


def test_classes_differ_in_colour_and_in_marker():
    figure = projection_figure(cloud(24), [label for label in range(6) for _ in range(4)], "six")
    groups = figure.axes[0].collections
    assert len({tuple(group.get_facecolor()[0]) for group in groups}) == 6
    assert len({group.get_paths()[0].vertices.tobytes() for group in groups}) == 6
    assert sum(len(group.get_offsets()) for group in groups) == 24


def test_any_text_is_drawn_literally():
    names = ["$broken", "_hidden", "<b>|\ttab\nline", "x" * 80]
    figure = projection_figure(cloud(12), names * 3, "cost $1 and\n$2_")
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == ["$broken", "_hidden", "<b>| tab line", "x" * 27 + "…"]
    assert figure_png(figure).startswith(b"\x89PNG")


def test_pyplot_keeps_nothing():
    import matplotlib.pyplot as plt

    projection_figure(cloud(12), ["a", "b"] * 6, "one")
    assert plt.get_fignums() == []


def test_many_families_have_a_legend_of_several_columns():
    figure = projection_figure(cloud(40), list(range(40)), "broad")
    assert len(figure.legends[0].get_texts()) == 40
    pairs = {(tuple(g.get_facecolor()[0]), g.get_paths()[0].vertices.tobytes()) for g in figure.axes[0].collections}
    assert len(pairs) == 40


@pytest.mark.parametrize(("n", "d"), [(24, 6), (5, 40), (3, 2)])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_principal_axes_are_scikit_learns_up_to_their_signs(n, d, offset):
    points = cloud(n, d) + offset
    plane, shares = pca(points)
    oracle = PCA(2, svd_solver="full").fit(points.numpy())
    np.testing.assert_allclose(np.abs(plane), np.abs(oracle.transform(points.numpy())), atol=1e-8)
    np.testing.assert_allclose(shares, oracle.explained_variance_ratio_, atol=1e-9)
    assert (plane.max(axis=0) >= -plane.min(axis=0)).all()


def test_principal_axes_of_thin_and_of_collapsed_embeddings():
    plane, shares = pca(cloud(6, d=1))
    assert shares == (1.0, 0.0)
    assert not plane[:, 1].any()
    plane, shares = pca(torch.ones(5, 3))
    assert plane.shape == (5, 2)
    assert not plane.any()
    assert np.isnan(shares).all()
    np.testing.assert_allclose(pca(1e-100 * cloud(9))[1], pca(cloud(9))[1])
