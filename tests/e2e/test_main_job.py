"""The main job on the shipped weights: what the README promises of it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data.suites import paper_suite
from evaluation import clustering_report
from models import load_embedder
from models.embedder import encode

ROOT = Path(__file__).parents[2]
RUN = json.loads((ROOT / "docs" / "main_run.json").read_text())
COLUMNS = (
    (("silhouette_true",), 3),
    (("interval",), 2),
    (("null", "z"), 1),
    (("davies_bouldin_true",), 2),
    (("silhouette_kmeans",), 3),
    (("davies_bouldin_kmeans",), 2),
    (("suites", "large", "silhouette_true"), 3),
    (("suites", "held-out", "silhouette_true"), 3),
    (("suites", "matched", "null", "z"), 1),
    (("retention", "cka"), 3),
    (("retention", "knn"), 3),
)


def number(row, path, decimals):
    for key in path:
        row = None if row is None else row[key]
    if row is None:
        return "–"
    return f"{row['low']:.2f} to {row['high']:.2f}" if path == ("interval",) else f"{row:.{decimals}f}"


def test_the_table_of_the_readme_is_that_of_the_recorded_run():
    lines = re.findall(r"^\| `?([\w-]+)`? \|(.*)\|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    table = {name: [cell.strip() for cell in cells.split("|")] for name, cells in lines}
    shown = [row for row in RUN["rows"] if row["family"] != "baseline" or row["name"] == "last-digit"]
    for row in shown:
        assert table[row["name"]][: len(COLUMNS)] == [number(row, *column) for column in COLUMNS], row["name"]


def test_the_recorded_run_keeps_its_promises():
    rows = {row["name"]: row for row in RUN["rows"] if row["family"] != "baseline"}
    large = {name: row["suites"]["large"]["silhouette_true"] for name, row in rows.items()}
    assert rows["base"]["null"]["z"] >= 5
    assert max(large["1-broad"], large["2-six"]) - large["base"] >= 0.25


def test_the_shipped_base_is_above_chance_and_is_the_base_of_the_recorded_run():
    suite = paper_suite()
    report = clustering_report(encode(load_embedder("tiny-llm"), suite.texts), suite.labels)
    assert report["null"]["z"] >= 5
    assert report["silhouette_true"] == pytest.approx(RUN["rows"][0]["silhouette_true"], abs=1e-4)


@pytest.mark.slow
def test_the_main_job_gives_the_recorded_numbers_again(tmp_path):
    """About five minutes. The same seed on another machine drifts a little, so the bounds are those of the promises."""
    command = [sys.executable, "train.py", "--output", str(tmp_path / "main"), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = {row["name"]: row for row in json.loads(done.stdout.splitlines()[-1])["rows"]}
    assert rows["base"]["null"]["z"] >= 5
    gain = rows["2-six"]["suites"]["large"]["silhouette_true"] - rows["base"]["suites"]["large"]["silhouette_true"]
    assert gain >= 0.25
    assert rows["slerp"]["retention"]["cka"] > rows["2-six"]["retention"]["cka"]
