"""Model by model, and what the clusters follow: every number of the row is on the page, in its place."""

import re

import numpy as np

from evaluation.report_models import models_section
from evaluation.report_nuisance import nuisance_section, nuisance_table
from tests.evaluation.report_rows import SIX, many_rows, panel


def cells(html):
    return [re.findall(r"<t[hd][^>]*>(?:<bdi>)?([^<]*)", line) for line in re.findall(r"<tr>(.*?)</tr>", html)]


def test_the_confusion_is_shown_as_counts_with_families_as_rows():
    row = many_rows()[0]
    html = models_section([row], {})
    table = cells(html[html.index("KMeans clusters</b>") : html.index("<b>Nuisances")])
    assert [line[0] for line in table[1:]] == list(SIX)
    assert [[int(count) for count in line[1:]] for line in table[1:]] == row["confusion"]["matrix"]
    assert "0.540 of the texts on the diagonal" in html


def test_a_bar_of_a_family_starts_in_the_middle(make_row):
    html = models_section([make_row(silhouette_by_family={"a": 0.5, "b": -1.0, "c": None})], {})
    bars = re.findall(r'class="plain" x="([\d.]+)%" y="1" width="([\d.]+)%"', html)
    assert bars == [("50.0", "25.0"), ("0.0", "50.0"), ("50.0", "0.0")]
    assert "<td>–</td>" in html


def test_chance_spread_and_seeds_are_told():
    html = models_section(many_rows()[:1], {})
    assert "from 9 suites of fresh windows" in html
    assert "jackknife (a spread of this suite, not an interval)" in html
    assert "Gaussian cloud with the same spectrum: 0.130 ± 0.020; here p = 0.010" in html
    assert "12 distinct results of KMeans over 20 seeds" in html


def test_a_missing_interval_says_why(make_row):
    html = models_section([make_row(interval=None, interval_reason="too few <windows>")], {})
    assert "no interval: too few &lt;windows&gt;" in html


def test_shares_of_the_axes_stand_beside_the_plane(make_row):
    html = models_section([make_row()], {"base": panel(np.random.default_rng(0))})
    assert "axis 1 (→): 41 % of the variance, axis 2 (↑): 17 %" in html
    assert html.count("<details open ") == 1


def test_a_model_with_nothing_but_table_columns_has_no_fold(rows):
    assert models_section(rows, {}) == ""


def test_what_the_clusters_follow_is_one_line_a_model():
    rows = many_rows()
    table = cells(nuisance_section(rows))
    assert table[0] == ["Model", *(entry["name"] for entry in rows[0]["nuisance"])]
    assert len(table) == 1 + sum("nuisance" in row for row in rows)
    assert [line[0].replace("<wbr>", "") for line in table[1:3]] == ["tiny-llm", "stages/"]
    first = [round(entry["ami_clusters"], 2) for entry in rows[0]["nuisance"]]
    assert [float(text.replace("−", "-")) for text in table[1][1:]] == first
    assert nuisance_section(rows[19:20]) == ""


def test_an_undefined_nuisance_shows_its_reason_and_an_unknown_number_its_name():
    entry = {"name": "length", "ami_clusters": None, "ami_clusters_reason": "all texts are equally long", "other": 0.5}
    html = nuisance_table([entry])
    assert '<td class="none" title="all texts are equally long">–</td>' in html
    assert ">other</th>" in html
    assert ">0.50</td>" in html
