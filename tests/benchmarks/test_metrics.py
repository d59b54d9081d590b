"""The peak memory of a call, and silhouettes on a device; the rest runs under ``make bench`` only."""

import json
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.evaluation_metrics import one_thread
from benchmarks.gpu_metrics import main as measure_on_a_device
from benchmarks.readme import METRICS_COMMAND, page

ROOT = Path(__file__).parents[2]


GROWTH = """
import torch
from benchmarks.memory_growth import measured
larger = torch.ones(2**25, dtype=torch.float64)
del larger
print(*measured(lambda: torch.ones(2**23, dtype=torch.float64)))
"""


def test_growth_is_the_peak_of_the_call_and_not_of_what_was_before() -> None:
    """In a process of its own: one that has run other tests has memory to spare, and need not grow."""
    done = subprocess.run([sys.executable, "-c", GROWTH], cwd=ROOT, capture_output=True, text=True, check=True)
    grown, seconds = map(float, done.stdout.split())
    assert 0.8 * 2**26 < grown < 1.2 * 2**26
    assert seconds > 0


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_silhouettes_of_a_device_are_on_the_page(tmp_path: Path) -> None:
    assert f"`{METRICS_COMMAND}`" in page([], tmp_path).partition("## Silhouettes on a GPU\n")[2]
    file = tmp_path / "gpu_metrics.json"
    measure_on_a_device(["--device", "cpu", "--shrink", "1000", "--repeats", "1", "--output", str(file)])
    found = json.loads(file.read_text())
    assert max(found["differences"].values()) < 1e-6
    section = page([], tmp_path).partition("## Silhouettes on a GPU\n")[2]
    assert all(f"| {row['name']} | {row['ours']:.4g} |" in section for row in found["rows"])
    assert found["command"] in section
