"""The flat table: it reads back to the same numbers, and no cell is a formula."""

import csv
import io

from hypothesis import given
from hypothesis import strategies as st

from evaluation.report_csv import csv_report
from tests.evaluation.report_rows import many_rows


def read(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_every_number_is_there_with_all_its_digits():
    rows = many_rows()
    table = read(csv_report(rows))
    assert [line["name"] for line in table] == [row["name"] for row in rows]
    for line, row in zip(table[:19], rows, strict=False):
        assert float(line["silhouette_true"]) == row["silhouette_true"]
        assert float(line["suites.large.interval.low"]) == row["suites"]["large"]["interval"]["low"]
        assert float(line["nuisance.window.ami_clusters"]) == row["nuisance"][2]["ami_clusters"]
        assert float(line["lengths.50.silhouette_true"]) == row["lengths"][2]["silhouette_true"]
        assert line["lengths.400.silhouette_true_reason"].startswith("a text of 400 terms")
        assert line["confusion.matrix"] == str(row["confusion"]["matrix"])
    assert table[19]["silhouette_true"] == ""
    assert table[19]["silhouette_true_reason"] == table[19]["error"] != ""


@given(
    name=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    note=st.text("=+-@\t\r\n\",; '1a", max_size=8),
)
def test_any_text_reads_back_and_none_starts_a_formula(name, note):
    [line] = read(csv_report([{"name": name, "note": note}]))
    for cell, text in ((line["name"], name), (line["note"], note)):
        assert cell.removeprefix("'") == text.removeprefix("'") or cell == text
        assert not cell.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r"))


def test_a_column_name_is_no_formula_either():
    assert csv_report([{"=HYPERLINK(1)": 1}]).startswith("'=HYPERLINK(1)\r\n")
    assert csv_report([{"name": "a", "z": -1.5}]) == "name,z\r\na,-1.5\r\n"
