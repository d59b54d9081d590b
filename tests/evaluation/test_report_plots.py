"""The drawings: positions follow the numbers, marks are round, labels keep off each other."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.report_plots import curve_svg, ticks, tradeoff_svg


@given(low=st.floats(-1e6, 1e6), width=st.floats(1e-6, 1e6))
def test_ticks_are_few_round_and_inside(low, width):
    marks = ticks(low, low + width)
    assert 3 <= len(marks) <= 9
    slack = 1e-6 * max(width, 1e-6) + 1e-9 * abs(low)
    assert all(low - slack <= mark <= low + width + slack for mark in marks)


def test_positions_follow_the_numbers(rows):
    centres = [
        (float(x), float(y)) for x, y in re.findall(r'<circle[^>]* cx="([\d.]+)" cy="([\d.]+)"', tradeoff_svg(rows[:2]))
    ]
    (base_x, base_y), (lora_x, lora_y) = centres
    assert lora_x < base_x  # the adapter keeps less
    assert lora_y < base_y  # and separates better: higher on the page


def test_equal_points_are_drawn_apart_in_their_labels(make_row):
    svg = tradeoff_svg([make_row(), make_row("slerp", family="slerp"), make_row("linear", family="control")])
    places = re.findall(r'class="name" x="([\d.]+)" y="([\d.]+)"', svg)
    assert len(set(places)) == 3


@pytest.mark.parametrize("points", [[], [(0, 1.0)]])
def test_a_curve_needs_two_points(points):
    assert curve_svg("loss", points) == ""


def test_a_flat_curve_is_drawn():
    assert "polyline" in curve_svg("loss", [(0, 1.0), (1, 1.0)])
    assert "polyline" in curve_svg("loss", [(0, 0.0), (0, 0.0)])
