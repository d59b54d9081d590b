"""The two figures of the paper: a bar is as long as its number, and chance is drawn where it lies."""

import re

import pytest

from evaluation.report_bars import DAVIES_BOULDIN, SILHOUETTE, bars_figure, bars_section

WHOLE = {"null": None, "null_reason": "none"}


def spans(figure, names):
    found = re.findall(rf'<rect class="{names}" x="([\d.]+)%" y="\d+" width="([\d.]+)%"', figure)
    return [(float(x), float(x) + float(width)) for x, width in found]


def uprights(figure, name):
    return [float(x) for x in re.findall(rf'<line class="{name}" x1="([\d.]+)%"', figure)]


def test_bars_start_at_zero_and_are_as_long_as_their_numbers(make_row):
    rows = [make_row(silhouette_true=0.4, silhouette_kmeans=0.2, **WHOLE)]
    rows.append(make_row("b", silhouette_true=-0.2, silhouette_kmeans=0.1, **WHOLE))
    figure = bars_figure(rows, SILHOUETTE)
    (zero, first), (start, end) = spans(figure, "mark f-base")
    assert end == pytest.approx(zero, abs=0.02)
    assert (first - zero) / (end - start) == pytest.approx(2.0, abs=0.01)
    (found_zero, found), _ = spans(figure, "mark f-base found")
    assert (found - found_zero) / (first - zero) == pytest.approx(0.5, abs=0.01)
    assert set(uprights(figure, "zero")) == {zero}


def test_chance_interval_and_seeds_lie_where_their_numbers_are(make_row):
    row = make_row(silhouette_true=0.5, silhouette_kmeans=0.5)
    row["null"] = {"mean": -0.1, "sd": 0.05, "z": 9.0, "p": 0.001}
    row["interval"] = {"low": 0.4, "high": 0.6, "sd": 0.1, "level": 0.95}
    row["null_kmeans"] = {"silhouette": {"mean": 0.13, "sd": 0.02, "high": 0.25}}
    row["kmeans_spread"] = {"silhouette": {"low": 0.3, "high": 0.5}}
    figure = bars_figure([row], SILHOUETTE)
    [(zero, half)] = spans(figure, "mark f-base")
    unit = (half - zero) / 0.5
    [(low, high)] = spans(figure, "band")
    assert (low - zero, high - zero) == (pytest.approx(-0.2 * unit, abs=0.03), pytest.approx(0, abs=0.03))
    assert uprights(figure, "chance") == [pytest.approx(zero - 0.1 * unit, abs=0.03)]
    assert uprights(figure, "gauss") == [pytest.approx(zero + 0.25 * unit, abs=0.03)]
    ends = [zero + value * unit for value in (0.4, 0.4, 0.6, 0.3, 0.3, 0.5)]
    assert uprights(figure, "whisker") == pytest.approx(ends, abs=0.03)


def test_a_far_bar_is_cut_and_said_to_be(make_row):
    rows = [make_row(name, davies_bouldin_true=2.0, davies_bouldin_kmeans=1.5) for name in "abc"]
    assert "Bars with an arrow" not in bars_figure(rows, DAVIES_BOULDIN)
    figure = bars_figure([*rows, make_row("length", davies_bouldin_true=32.9)], DAVIES_BOULDIN)
    assert figure.count('class="beyond"') == 1
    assert "32.90" in figure
    widths = [end for _, end in spans(figure, "mark f-base")]
    assert widths[:3] == [pytest.approx(widths[0])] * 3
    assert widths[0] > 50 < widths[3] == 100


def test_published_baseline_and_failed_rows_are_told_apart(rows):
    rows[2] |= {"family": "baseline"}
    rows[1] |= {"silhouette_true": None, "silhouette_kmeans": None, "error": "no such file"}
    figure = bars_figure(rows, SILHOUETTE)
    assert re.findall(r'<div class="bar (\w+)">', figure) == ["measured", "measured", "baseline", "published"]
    assert figure.count(">failed<") == 1


def test_no_number_no_figure(make_row):
    assert bars_section([]) == ""
    empty = dict.fromkeys(
        ("silhouette_true", "silhouette_kmeans", "davies_bouldin_true", "davies_bouldin_kmeans", "null")
    )
    assert bars_section([make_row(**empty)]) == ""
