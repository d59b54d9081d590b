"""The effect of sequence length: a logarithmic axis, gaps that stay gaps, reasons beside the plot."""

import re
from itertools import pairwise

import pytest

from evaluation.report_lengths import lengths_section, lengths_svg


def lengths(*values, null=None):
    entries = []
    for terms, value in zip((10, 20, 40, 80), values, strict=True):
        entry = {"terms": terms, "silhouette_true": value}
        entry |= {"silhouette_true_reason": "too long <b>"} if value is None else {}
        entries.append(entry | ({"null": {"mean": null}} if null is not None else {}))
    return entries


def places(svg):
    return [(float(x), float(y)) for x, y in re.findall(r'<circle[^>]* cx="([\d.]+)" cy="([\d.]+)"', svg)]


def test_doubling_the_length_is_always_the_same_step(make_row):
    svg = lengths_svg([make_row(lengths=lengths(0.1, 0.2, 0.3, 0.2))])
    xs, ys = zip(*places(svg), strict=True)
    steps = [b - a for a, b in pairwise(xs)]
    assert steps == pytest.approx([steps[0]] * 3, abs=0.2)
    assert ys[0] > ys[1] > ys[2] < ys[3]


def test_a_gap_breaks_the_line_and_its_reason_is_listed(make_row):
    rows = [make_row(lengths=lengths(0.1, None, 0.3, 0.2)), make_row("b", lengths=lengths(0.1, None, 0.3, 0.2))]
    svg = lengths_svg(rows[:1])
    lines = re.findall(r'class="line s-base" points="([^"]*)"', svg)
    assert [len(line.split()) for line in lines] == [1, 2]
    assert len(places(svg)) == 3
    assert "<li>20 terms: too long &lt;b&gt; (base, b)</li>" in lengths_section(rows)


def test_the_mean_by_chance_is_a_dashed_line_of_its_own(make_row):
    svg = lengths_svg([make_row(lengths=lengths(0.1, 0.2, 0.3, 0.2, null=-0.1))])
    [line] = re.findall(r'class="line null s-base" points="([^"]*)"', svg)
    heights = {point.split(",")[1] for point in line.split()}
    assert len(heights) == 1
    assert float(heights.pop()) > max(y for _, y in places(svg))


def test_names_at_the_ends_keep_apart(make_row):
    rows = [make_row(f"model {i}", lengths=lengths(0.1, 0.2, 0.3, 0.2 + i * 1e-4)) for i in range(30)]
    heights = sorted(float(y) for y in re.findall(r'class="name" x="\d+" y="([\d.]+)"', lengths_svg(rows)))
    assert min(b - a for a, b in pairwise(heights)) > 13.5
    assert heights[0] > 0


def test_nothing_is_drawn_where_nothing_was_measured(make_row):
    none = lengths(None, None, None, None)
    assert lengths_section([make_row(), make_row("b", lengths=[]), make_row("c", lengths=none)]) == ""
    assert "<circle" in lengths_section([make_row(lengths=lengths(None, None, 0.1, None))])
