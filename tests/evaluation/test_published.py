"""The published rows are the paper's, and a report takes them."""

import pytest

from evaluation.published import published_rows
from evaluation.report_schema import PAPER_COLUMNS, validate_report

# as the paper prints it, names and spelling included
TABLE_2 = """
| EmbeddingGemma(0.3B) | 0.0339 | 2.1082 | 0.0857 | 1.6192 |
| gte multilingual-base(0.3B) | -0.0837 | 3.1835 | 0.1904 | 1.2395 |
| gte-large-en-v1.5(0.4B) | -0.0924 | 3.1173 | 0.1718 | 1.2234 |
| nommic-embed-text-v2-moe(0.5B) | -0.1141 | 3.2009 | 0.2497 | 1.1364 |
| Multilingual-e5-large(0.6B) | -0.0640 | 2.6140 | 0.1831 | 1.3723 |
| Qwen3 Embedding (0.6B) | 0.1830 | 1.5173 | 0.1898 | 1.3560 |
| gte-Qwen2-1.5B-instruct | 0.0563 | 2.0755 | 0.1499 | 1.3922 |
| Qwen3 Embedding(4B) | 0.2724 | 1.2080 | 0.2724 | 1.2081 |
| GritLM-7B | 0.2017 | 1.3827 | 0.2429 | 1.1863 |
| gte-Qwen2-7B instruct | 0.1229 | 1.6347 | 0.1136 | 1.5824 |
| e5-mistral-7b-instruct | 0.3037 | 1.1061 | 0.3037 | 1.1061 |
| Qwen3 Embedding(8B) | 0.3103 | 1.0893 | 0.3103 | 1.0893 |
| llama-embed-Nemtron(8B) | 0.0953 | 1.7002 | 0.0963 | 1.6583 |
| bge-multilingual-gemma2(9B) | 0.2568 | 1.2246 | 0.2568 | 1.2246 |
"""
PRINTED = [[cell.strip() for cell in line.split("|")[1:-1]] for line in TABLE_2.strip().splitlines()]


@pytest.mark.parametrize(("printed", "row"), list(zip(PRINTED, published_rows(), strict=True)))
def test_every_number_is_the_printed_one(printed, row):
    assert [f"{row[column]:.4f}" for column in PAPER_COLUMNS] == printed[1:]
    # the names are written in our spelling, and have the printed one's figures and one of its words
    assert row["name"].endswith(" (paper)")
    version = {"nommic": "nomic", "nemtron": "nemotron"}
    words = [version.get(word, word) for word in printed[0].lower().replace("(", " ").replace("-", " ").split()]
    assert words[0] in row["name"]


def test_a_report_takes_them_beside_measured_rows_of_the_same_models(make_row):
    measured = [make_row(row["name"].removesuffix(" (paper)")) for row in published_rows()]
    validate_report({"rows": [*measured, *published_rows()], "context": {}})


def test_they_say_that_they_were_not_measured():
    for row in published_rows():
        assert row["source"] == row["family"] == "published"
        assert row["null"] is None
        assert row["retention"] is None
        assert row["suites"] == {}
        assert row["note"] == "Table 2 of the paper"


def test_a_caller_may_change_the_rows():
    published_rows()[0]["suites"]["large"] = {}
    published_rows()[0]["name"] = "other"
    assert published_rows()[0]["suites"] == {}
    assert published_rows()[0]["name"] == "embeddinggemma-300m (paper)"
