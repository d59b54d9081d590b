"""The trade-off plot, and the small curves: positions follow the numbers."""

import re

import pytest

from evaluation.report_curves import curve_svg, curves_section
from evaluation.report_tradeoff import tradeoff_section, tradeoff_svg


def centres(svg):
    return [(float(x), float(y)) for x, y in re.findall(r'<circle[^>]* cx="([\d.]+)" cy="([\d.]+)"', svg)]


@pytest.mark.parametrize("narrow", [False, True])
def test_positions_follow_the_numbers(rows, narrow):
    (base_x, base_y), (lora_x, lora_y) = centres(tradeoff_svg(rows[:2], narrow=narrow))
    assert lora_x < base_x  # the adapter keeps less
    assert lora_y < base_y  # and separates better: higher on the page


def test_equal_points_are_drawn_apart_in_their_labels(make_row):
    svg = tradeoff_svg([make_row(), make_row("slerp", family="slerp"), make_row("linear", family="control")])
    places = re.findall(r'class="name" x="([\d.]+)" y="([\d.]+)"', svg)
    assert len(set(places)) == 3


def test_an_interval_is_a_whisker_around_its_point(rows):
    rows[1]["suites"]["large"]["interval"] = {"low": 0.43, "high": 0.48, "sd": 0.01, "level": 0.95}
    svg = tradeoff_svg(rows)
    [(x, low, high)] = re.findall(r'class="whisker" x1="([\d.]+)" x2="[\d.]+" y1="([\d.]+)" y2="([\d.]+)"', svg)
    assert (float(x), True) == (centres(svg)[1][0], float(high) < centres(svg)[1][1] < float(low))
    assert "Whiskers are 95 % intervals" in tradeoff_section(rows)
    rows[1]["suites"]["large"] |= {"interval": None, "interval_reason": "too few windows"}
    assert "Whiskers" not in tradeoff_section(rows)


def test_a_narrow_plot_numbers_its_points_in_the_order_of_the_list(rows):
    section = tradeoff_section(rows)
    assert re.findall(r'class="name"[^>]*>(\d+)<', section) == ["1", "2", "3"]
    assert re.findall(r"<li>([^<]*)</li>", section) == ["base", "stages/2-six", "soup"]


@pytest.mark.parametrize("points", [[], [(0, 1.0)]])
def test_a_curve_needs_two_points(points):
    assert curve_svg("loss", points) == ""
    assert curves_section({"loss": points}) == ""


def test_a_flat_curve_is_drawn():
    assert "polyline" in curve_svg("loss", [(0, 1.0), (1, 1.0)])
    assert "polyline" in curve_svg("loss", [(0, 0.0), (0, 0.0)])
