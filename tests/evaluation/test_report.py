"""The files of a report: the same numbers, nothing unescaped, nothing fetched, nothing half-written."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from evaluation import write_report
from evaluation.report_columns import CAVEATS
from tests.evaluation.report_rows import failed_row, many_rows, panel

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 16
HOSTILE = "<script>alert('x')</script>\ta|b\n\"q\" & `c` *d* [e](f)"


class Page(HTMLParser):
    """Collects the elements, their attributes and the cells of the table body."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.rows, self._cell = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        self._cell = tag in ("td", "th") or (self._cell and tag not in ("tr", "small", "sup"))
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self._cell and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def files(folder):
    return (
        json.loads((folder / "report.json").read_text()),
        (folder / "report.md").read_text(),
        (folder / "report.html").read_text(),
    )


def shown(html):
    """The page without the numbers that it carries for its buttons."""
    return re.sub(r'<script type="application/json".*?</script>', "", html)


def carried(html):
    """Those numbers."""
    [text] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html)
    return json.loads(text)


def styles(page):
    return [attributes["style"] for _, attributes in page.elements if "style" in attributes]


def markdown_rows(text):
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_json_holds_rows_and_context_as_given(tmp_path, rows):
    write_report(tmp_path, rows, title="t", context={"seed": 3}, curves={"loss": [(0, 2.0), (1, 1.0)]})
    report, _, _ = files(tmp_path)
    assert report == {"rows": rows, "context": {"seed": 3}, "curves": {"loss": [[0, 2.0], [1, 1.0]]}}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.csv", "report.html", "report.json", "report.md"]


def test_the_page_carries_the_report_and_its_csv(tmp_path, rows):
    drawn = {"base": panel(np.random.default_rng(0))}
    write_report(tmp_path, rows, title="t", context={"seed": 3}, curves={"loss": [(0, 2.0), (1, 1.0)]}, panels=drawn)
    report, _, html = files(tmp_path)
    content = carried(html)
    assert content["csv"].encode() == (tmp_path / "report.csv").read_bytes()
    assert {key: content["report"][key] for key in report} == report
    assert content["report"]["panels"] == {"base": drawn["base"].listed()}
    np.testing.assert_allclose(content["report"]["panels"]["base"]["distances"], drawn["base"].distances, rtol=1e-3)


def test_markdown_and_html_show_the_same_cells(tmp_path, rows):
    write_report(tmp_path, rows, title="t", context={})
    _, markdown, html = files(tmp_path)
    table = markdown_rows(markdown)
    assert len({len(line) for line in table}) == 1
    body = [row for row in Page(html).rows if row and row[0].startswith(tuple(r["name"] for r in rows))]
    assert len(body) == len(rows)
    for ours, theirs in zip(body, table[2:], strict=True):
        numbers = [re.sub("<sup>.*</sup>", "", text) for text in theirs[4:-1]]
        assert [text.strip() for text in ours[1:]] == numbers
        assert ours[0] == theirs[0]
    assert numbers[:3] == ["0.046", "–", "–"]


def test_markdown_has_a_table_for_each_further_group(tmp_path):
    write_report(tmp_path, many_rows(), title="t", context={})
    _, markdown, html = files(tmp_path)
    for group in ("Chance and spread", "Neighbours and clusters", "Geometry", "Silhouette by family", "Benchmarks"):
        assert f"## {group}\n" in markdown
        assert f">{group}</th>" in html
    tables = markdown.split("\n## ")
    [benchmarks] = [table for table in tables if table.startswith("Benchmarks")]
    assert len(markdown_rows(benchmarks)) == 2 + 19  # baselines and published rows have no score there


def test_undefined_numbers_show_their_reason(tmp_path, rows):
    write_report(tmp_path, rows, title="t", context={})
    _, markdown, html = files(tmp_path)
    for text in (markdown, html):
        assert text.count("needs at least 12 texts") >= 1
        assert "the paper prints none" in text
        assert "not measured" in text
    titles = [attrs["title"] for tag, attrs in Page(html).elements if tag == "td" and "none" in attrs["class"].split()]
    assert titles.count("needs at least 12 texts") == 1
    assert "NaN" not in markdown + html


def test_caveats_stand_beside_the_table(tmp_path, rows):
    write_report(tmp_path, rows, title="t", context={})
    _, markdown, html = files(tmp_path)
    for caveat in CAVEATS:
        assert caveat in markdown
        assert caveat in html


@pytest.mark.parametrize("panels", [False, True])
def test_text_from_outside_is_escaped_everywhere(tmp_path, rows, make_row, panels):
    row = make_row(HOSTILE, family="lora", prompt=HOSTILE, note=HOSTILE, suites={HOSTILE: {"silhouette_true": 0.1}})
    row |= {"silhouette_by_family": {HOSTILE: 0.1, "flat": None}, "benchmarks": {HOSTILE: 0.5}}
    row |= {"confusion": {"families": [HOSTILE, "b"], "matrix": [[1, 2], [3, 4]], "accuracy": 0.5}}
    row |= {"nuisance": [{"name": HOSTILE, "ami_clusters": 0.1, HOSTILE: None, f"{HOSTILE}_reason": HOSTILE}]}
    row |= {"lengths": [{"terms": 10, "silhouette_true": 0.1}, {"terms": 20, "silhouette_true": None}]}
    row["lengths"][1]["silhouette_true_reason"] = HOSTILE
    row |= {"interval": None, "interval_reason": HOSTILE, "error": HOSTILE}
    row |= {"retention": None, "retention_reason": HOSTILE}
    row["suites"]["large"] = {"silhouette_true": None, "silhouette_true_reason": HOSTILE}
    picture = tmp_path / "a b.png"
    picture.write_bytes(PNG)
    plotted = make_row("<img src=x>", family="lora")
    drawn = {HOSTILE: panel(np.random.default_rng(0), labels=(HOSTILE, "\u202eevil", "", "b"))} if panels else None
    write_report(
        tmp_path,
        [rows[0], row, plotted],
        title=HOSTILE,
        context={HOSTILE: HOSTILE, "list": [HOSTILE], "end": "</script><!--"},
        projections={HOSTILE: picture},
        curves={HOSTILE: [(0, 1.0), (1, 2.0)]},
        panels=drawn,
    )
    report, markdown, html = files(tmp_path)
    assert report["rows"][1]["name"] == carried(html)["report"]["rows"][1]["name"] == HOSTILE
    page = Page(html)
    assert [tag for tag, _ in page.elements].count("script") == 2
    assert [tag for tag, _ in page.elements].count("img") == 1
    assert "<!--" not in html
    allowed = {"alt", "src", "class", "title", "data-value", "data-column", "data-first", "scope", "colspan", "rowspan"}
    allowed |= {"style"}  # the depth of a shade, always a number
    assert all(set(attributes) <= allowed for tag, attributes in page.elements if tag in ("td", "th", "img"))
    assert not [attrs for _, attrs in page.elements if any(name.startswith("on") for name in attrs)]
    assert all(re.fullmatch(r"--depth:\d+%|flex:\d+|background:[\w(),. %-]+", style) for style in styles(page))
    assert "<script" not in markdown
    for table in markdown.split("\n\n"):
        assert len({len(line) for line in markdown_rows(table)}) <= 1
    assert "a\\|b" in markdown
    assert "](<a%20b.png>)" in markdown


def test_the_page_fetches_nothing(tmp_path, rows):
    picture = tmp_path / "base.png"
    picture.write_bytes(PNG)
    write_report(tmp_path, rows, title="t", context={}, projections={"base": picture})
    _, _, html = files(tmp_path)
    elements = Page(html).elements
    assert not [tag for tag, _ in elements if tag in ("link", "iframe", "object", "base")]
    sources = [attributes["src"] for _, attributes in elements if "src" in attributes]
    assert len(sources) == 1
    assert sources[0].startswith("data:image/png;base64,")
    assert not re.search(r"https?://|@import|url\(", shown(html))
    policy = next(attributes["content"] for _, attributes in elements if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'")


def test_tradeoff_draws_the_path_from_the_base_to_the_last_adapter(tmp_path, rows, make_row):
    def circles():
        return [tag for tag, _ in Page(files(tmp_path)[2]).elements].count("circle")

    write_report(tmp_path, rows, title="t", context={})
    assert circles() == 2 * 3  # once for a desk, once for a phone
    assert 'class="path"' in files(tmp_path)[2]
    write_report(tmp_path, [make_row(), make_row("soup", family="soup")], title="t", context={})
    assert circles() == 2 * 2
    assert 'class="path"' not in files(tmp_path)[2]
    write_report(tmp_path, [make_row()], title="t", context={})
    assert circles() == 0


def test_a_silhouette_that_chance_reaches_is_marked(tmp_path, make_row):
    row = make_row(null={"mean": -0.1, "sd": 0.02, "z": 0.8, "p": 0.18})
    write_report(tmp_path, [row, make_row("clear")], title="t", context={})
    marked = [attrs for tag, attrs in Page(files(tmp_path)[2]).elements if "faint" in (attrs.get("class") or "")]
    assert [attrs["data-value"] for attrs in marked] == ["0.0461"]


def test_pictures_give_way_to_panels(tmp_path, rows):
    picture = tmp_path / "base.png"
    picture.write_bytes(PNG)
    drawn = {"base": panel(np.random.default_rng(0))}
    write_report(tmp_path, rows, title="t", context={}, projections={"base": picture}, panels=drawn)
    _, markdown, html = files(tmp_path)
    assert "![base](<base.png>)" in markdown
    assert [attrs["alt"] for tag, attrs in Page(html).elements if tag == "img"] == [
        "Distances between the texts of base"
    ]
    assert html.count('<g id="t0">') == html.count('<g id="p0">') == 1
    assert html.count('<use href="#t0"/>') == 1


def test_a_model_that_failed_is_shown_plainly(tmp_path, rows):
    failed = failed_row("broken", "encoder")
    write_report(tmp_path, [*rows, failed], title="t", context={})
    _, markdown, html = files(tmp_path)
    assert f"- **broken**: {failed['error']}".replace("_", "\\_") in markdown.replace("\\_", "_").replace("_", "\\_")
    assert "Could not be measured" in html
    assert html.count('<em class="bad">failed</em>') == 3  # in the table and in both figures
    assert "Could not be measured" not in write_and_read(tmp_path, rows)


def test_rows_and_columns_can_be_chosen_without_a_script(tmp_path):
    html = write_and_read(tmp_path, many_rows())
    boxes = re.findall(r'id="show-(\w+)"( checked)?><span>([^<]+)<', html)
    names = {text: (name, bool(checked)) for name, checked, text in boxes}
    assert {"Measured", "Baselines", "Published", "Paper suite", "Geometry", "Benchmarks"} <= set(names)
    assert [text for text, (_, checked) in names.items() if checked] == [
        "Measured", "Baselines", "Published", "Paper suite", "Other suites", "Kept of the base"
    ]  # fmt: skip
    for name, _ in names.values():
        assert f"main:has(#show-{name}:not(:checked)) .{name} {{ display: none; }}" in html
        assert re.search(rf'class="[^"]*\b{name}\b', html)


def test_an_interval_stands_below_its_silhouette(tmp_path, make_row):
    row = make_row(interval={"low": -0.01, "high": 0.104, "sd": 0.02, "level": 0.95})
    assert "0.046<small>−0.01 to 0.10</small>" in write_and_read(tmp_path, [row])


def write_and_read(folder, rows):
    write_report(folder, rows, title="t", context={})
    return files(folder)[2]


@pytest.mark.parametrize("case", ["row", "picture", "content", "name", "panel"])
def test_bad_input_writes_nothing(tmp_path, rows, case):
    picture, folder = tmp_path / "p.png", tmp_path / "run"
    folder.mkdir()
    picture.write_bytes(b"GIF89a" if case == "content" else PNG)
    projections = {"nobody" if case == "name" else "base": tmp_path / "absent.png" if case == "picture" else picture}
    if case == "row":
        rows[2]["silhouette_true"] = float("nan")
    messages = {
        "row": r"rows\[2\]\.silhouette_true",
        "picture": "expected a PNG file, got nothing at",
        "content": "expected a PNG file, got other content",
        "name": r"projections\['nobody'\]: expected the name of a row",
        "panel": r"panels\['nobody'\]: expected the name of a row",
    }
    drawn = {"nobody": panel(np.random.default_rng(0))} if case == "panel" else None
    with pytest.raises(ValueError, match=messages[case]):
        write_report(folder, rows, title="t", context={}, projections=projections, panels=drawn)
    assert list(folder.iterdir()) == []


def test_a_report_without_rows_is_a_page_too(tmp_path):
    write_report(tmp_path, [], title="nothing yet", context={})
    assert "nothing yet" in files(tmp_path)[2]


def test_prompts_are_a_column_when_there_are_any_and_notes_stand_below(tmp_path, rows):
    write_report(tmp_path, rows, title="t", context={})
    assert "No model was given a prompt." in files(tmp_path)[2]
    rows[0]["prompt"], rows[0]["note"] = "query: ", "half-way"
    write_report(tmp_path, rows, title="t", context={})
    page = files(tmp_path)[2]
    assert "No model was given a prompt." not in page
    assert "query:" in page
    assert ">Prompt</th>" in page
    assert f"<li><b><bdi>{rows[0]['name']}</bdi></b>: half-way</li>" in page
