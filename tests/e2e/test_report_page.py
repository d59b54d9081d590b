"""The report of 20 models in a browser: it opens, asks for nothing, fits a phone and a desk, sorts, hides and saves."""

import csv
import json
import re
import time

import pytest

from tests.e2e.browser import browser
from tests.evaluation.report_rows import HOSTILE, many_rows, write, write_hostile

WIDEST_BYTES = 10_000_000


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


def test_the_page_of_twenty_models_is_small(page):
    assert sum(row["family"] not in ("baseline", "published") for row in many_rows()) == 20
    assert page.stat().st_size < WIDEST_BYTES


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1440, 390])
def test_it_opens_quietly_and_fits(page, chromium, width, dark):
    chromium.complaints.clear()
    chromium.requests.clear()
    chromium.open(page, width=width, dark=dark)
    assert chromium.complaints == []
    assert {re.match(r"\w+:", url).group() for url in chromium.requests} <= {"file:", "data:"}
    assert chromium.value("document.documentElement.scrollWidth") <= width
    body, ink = chromium.value(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    brightness = [sum(map(int, re.findall(r"\d+", colour))) for colour in (body, ink)]
    assert (brightness[0] < brightness[1]) == dark
    assert chromium.picture(height=600).startswith(b"\x89PNG")


@pytest.mark.parametrize("width", [1440, 390])
def test_no_text_breaks_the_page(chromium, tmp_path, width):
    chromium.complaints.clear()
    chromium.open(write_hostile(tmp_path), width=width)
    assert chromium.complaints == []
    assert chromium.value("document.documentElement.scrollWidth") <= width
    assert chromium.value("document.querySelectorAll('script').length") == 2
    shown = names(chromium)
    assert len(shown) == len(HOSTILE)
    assert shown[:3] == [HOSTILE[0], HOSTILE[1], "\ufffdevil"]
    assert shown[6] == "(blank)"


def test_it_is_readable_without_a_script(page, chromium):
    chromium.send("Emulation.setScriptExecutionDisabled", value=True)
    chromium.open(page, width=1440)
    chromium.send("Emulation.setScriptExecutionDisabled", value=False)
    assert chromium.value("document.querySelectorAll('table.models tbody tr').length") == len(many_rows())
    assert chromium.value("document.querySelectorAll('.bars .bar svg').length") == 2 * (len(many_rows()) + 1)
    assert chromium.value("document.querySelector('details[open] .plane').getBoundingClientRect().width") > 100


def names(chromium):
    return chromium.value("[...document.querySelectorAll('table.models tbody th bdi')].map(name => name.textContent)")


def test_a_heading_sorts_and_undefined_numbers_stay_last(page, chromium):
    chromium.open(page, width=1440)
    values = {row["name"]: row["silhouette_true"] for row in many_rows()}
    click = "document.querySelector('th[data-column=\"1\"] button').click()"
    chromium.value(click)
    descending = [values[name] for name in names(chromium)]
    assert descending[-1] is None
    assert descending[:-1] == sorted(descending[:-1], reverse=True)
    chromium.value(click)
    ascending = [values[name] for name in names(chromium)]
    assert (ascending[:-1], ascending[-1]) == (sorted(descending[:-1]), None)


def visible(chromium, selector):
    return chromium.value(f"[...document.querySelectorAll('{selector}')].filter(e => e.getClientRects().length).length")


def test_rows_and_columns_are_hidden_by_their_boxes(page, chromium):
    chromium.open(page, width=1440)
    assert visible(chromium, "table.models tbody tr") == len(many_rows())
    chromium.value("document.getElementById('show-published').click()")
    assert visible(chromium, "table.models tbody tr") == len(many_rows()) - 14
    assert visible(chromium, ".bars .published") == 0
    before = visible(chromium, "table.models thead .title")
    chromium.value("[...document.querySelectorAll('.choice label')].find(e => e.innerText === 'Geometry').click()")
    assert visible(chromium, "table.models thead .title") == before + 5


@pytest.mark.parametrize("name", ["report.csv", "report.json"])
def test_the_numbers_can_be_saved(page, chromium, tmp_path, name):
    chromium.open(page, width=1440)
    chromium.send("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    chromium.value(f"[...document.querySelectorAll('#save button')].find(e => e.innerText.endsWith('{name}')).click()")
    saved = tmp_path / name
    for _ in range(200):
        if saved.is_file():
            break
        time.sleep(0.05)
    if name.endswith("csv"):
        assert saved.read_bytes() == (page.parent / name).read_bytes()
        assert len(list(csv.reader(saved.open(newline="")))) == 1 + len(many_rows())
    else:
        content = json.loads(saved.read_text())
        assert content["rows"] == many_rows()
        assert len(content["panels"]) == 19
    assert chromium.complaints == []
