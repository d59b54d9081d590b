"""``train.py --backbone e5-mistral`` by its name: without the model it says the way out, with it it trains, merges and reports.

The model is a snapshot in a hub cache, laid out like e5-mistral's and as wide as it (4096), with two narrow random layers.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

from data.suites import paper_suite
from models.backbones import BACKBONES

ROOT = Path(__file__).parents[2]
ROW = BACKBONES["e5-mistral"]
SHORT = ["--permutations", "20", "--draws", "0", "--no-baselines", "--max-steps", "2", "--merges", "slerp", "--json"]


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a user types it."""
    return subprocess.run(
        [sys.executable, "train.py", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9"} | environment,
    )


@pytest.fixture
def cache(make_mistral, tmp_path: Path) -> Path:
    """A hub cache with the row's own commit."""
    assert ROW.repo_id is not None
    assert ROW.revision is not None
    repository = tmp_path / "cache" / f"models--{ROW.repo_id.replace('/', '--')}"
    make_mistral(repository / "snapshots" / ROW.revision, max_tokens=1024, hidden_size=ROW.dimension, head_dim=8)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(ROW.revision)
    return tmp_path / "cache"


def test_without_the_model_one_line_says_the_way_out_and_nothing_is_written(tmp_path):
    done = run("--backbone", "e5-mistral", "--cache", str(tmp_path / "cache"), "--output", str(tmp_path / "run"))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for said in (ROW.repo_id, "--cache", "tiny-llm"):
        assert said in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_with_its_folder_in_the_cache_it_trains_merges_and_reports(cache, tmp_path):
    output = tmp_path / "run"
    done = run("--backbone", "e5-mistral", "--cache", str(cache), "--output", str(output), *SHORT)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert [row["name"] for row in rows] == ["base", "1-broad", "2-six", "slerp"]
    adapter = json.loads((output / "stages" / "2-six" / "adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == (ROW.repo_id, ROW.revision)
    assert (output / "report.html").is_file()
    plain = SentenceTransformer(str(output / "merged" / "slerp"), device="cpu")
    assert plain.encode(list(paper_suite().texts)).shape == (24, ROW.dimension)
    assert plain.tokenizer("1, 2")["input_ids"][-1] == plain.tokenizer.eos_token_id
