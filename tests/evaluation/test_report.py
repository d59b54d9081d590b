"""The three files of a report: the same numbers, nothing unescaped, nothing fetched, nothing half-written."""

import json
import re
from html.parser import HTMLParser

import pytest

from evaluation import write_report
from evaluation.report_columns import CAVEATS

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


def markdown_rows(text):
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_json_holds_rows_and_context_as_given(tmp_path, rows):
    write_report(tmp_path, rows, title="t", context={"seed": 3}, curves={"loss": [(0, 2.0), (1, 1.0)]})
    report, _, _ = files(tmp_path)
    assert report == {"rows": rows, "context": {"seed": 3}, "curves": {"loss": [[0, 2.0], [1, 1.0]]}}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json", "report.md"]


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


def test_undefined_numbers_show_their_reason(tmp_path, rows):
    write_report(tmp_path, rows, title="t", context={})
    _, markdown, html = files(tmp_path)
    for text in (markdown, html):
        assert text.count("needs at least 12 texts") >= 1
        assert "the paper prints none" in text
        assert "not measured" in text
    assert ("td", {"class": "none", "title": "needs at least 12 texts"}) in Page(html).elements
    assert "NaN" not in markdown + html


def test_caveats_stand_beside_the_table(tmp_path, rows):
    write_report(tmp_path, rows, title="t", context={})
    _, markdown, html = files(tmp_path)
    for caveat in CAVEATS:
        assert caveat in markdown
        assert caveat in html


def test_text_from_outside_is_escaped_everywhere(tmp_path, rows, make_row):
    row = make_row(HOSTILE, family="lora", prompt=HOSTILE, note=HOSTILE, suites={HOSTILE: {"silhouette_true": 0.1}})
    row |= {"retention": None, "retention_reason": HOSTILE}
    row["suites"]["large"] = {"silhouette_true": None, "silhouette_true_reason": HOSTILE}
    picture = tmp_path / "a b.png"
    picture.write_bytes(PNG)
    plotted = make_row("<img src=x>", family="lora")
    write_report(
        tmp_path,
        [rows[0], row, plotted],
        title=HOSTILE,
        context={HOSTILE: HOSTILE, "list": [HOSTILE]},
        projections={HOSTILE: picture},
        curves={HOSTILE: [(0, 1.0), (1, 2.0)]},
    )
    report, markdown, html = files(tmp_path)
    assert report["rows"][1]["name"] == HOSTILE
    page = Page(html)
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert [tag for tag, _ in page.elements].count("img") == 1
    allowed = {"alt", "src", "class", "title", "data-value", "data-column", "data-first", "scope", "colspan", "rowspan"}
    assert all(set(attributes) <= allowed for tag, attributes in page.elements if tag in ("td", "th", "img"))
    assert "<script" not in markdown
    assert len({len(line) for line in markdown_rows(markdown)}) == 1
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
    assert not re.search(r"https?://|@import|url\(", html)
    policy = next(attributes["content"] for _, attributes in elements if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'")


def test_tradeoff_draws_the_path_from_the_base_to_the_last_adapter(tmp_path, rows, make_row):
    write_report(tmp_path, rows, title="t", context={})
    assert [tag for tag, _ in Page(files(tmp_path)[2]).elements].count("circle") == 3
    assert 'class="path"' in files(tmp_path)[2]
    write_report(tmp_path, [make_row(), make_row("soup", family="soup")], title="t", context={})
    html = files(tmp_path)[2]
    assert [tag for tag, _ in Page(html).elements].count("circle") == 2
    assert 'class="path"' not in html
    write_report(tmp_path, [make_row()], title="t", context={})
    assert "<circle" not in files(tmp_path)[2]


def test_a_silhouette_that_chance_reaches_is_marked(tmp_path, make_row):
    row = make_row(null={"mean": -0.1, "sd": 0.02, "z": 0.8, "p": 0.18})
    write_report(tmp_path, [row, make_row("clear")], title="t", context={})
    marked = [attrs for tag, attrs in Page(files(tmp_path)[2]).elements if "faint" in (attrs.get("class") or "")]
    assert [attrs["data-value"] for attrs in marked] == ["0.0461"]


@pytest.mark.parametrize("case", ["row", "picture", "content", "name"])
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
    }
    with pytest.raises(ValueError, match=messages[case]):
        write_report(folder, rows, title="t", context={}, projections=projections)
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
    assert f"<li><b>{rows[0]['name']}</b>: half-way</li>" in page
