"""The part of the page that is about training: the table of ``make bench``, and what a GPU left."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.result import Result
from benchmarks.table import goal_cell, megabytes, ratio_cell, table
from benchmarks.training_case import FILL
from benchmarks.training_speed import COMPARED
from storage.json_file import read_json

GPU_FILE = "gpu_training.json"
GPU_COMMAND = f"python -m benchmarks.gpu_training --output benchmarks/{GPU_FILE}"

TITLE = "Training against sentence-transformers' trainer"
BEFORE = (
    "The same LoRA layers (PEFT), batches, supervised contrastive loss, AdamW, schedule, clipping and precision, no dropout, on "
    "the real all-MiniLM-L6-v2 and on a random Qwen3 decoder of 16 layers. A step lasts from the end of the one before to its "
    "own: reading, padding and logging are in it. Ours runs with its guard, progress bar and event file, and has read its texts "
    "before the first step; the peer logs and saves nothing, and gets its rows from memory. Texts of uneven length fill a padded "
    f"batch to {FILL:.0%}. Memory is what a process of its own grows by in two steps, model and libraries apart. Losses are "
    f"compared over {COMPARED} steps of short batches and over every timed one."
)


def training_table(results: Sequence[Result]) -> str:
    """Return the table of the part."""
    rows = []
    for each in results:
        details = each.details or {}
        texts = details["texts_a_step"]
        memory = [megabytes(details[key]) if key in details else "-" for key in ("peak_bytes", "peer_peak_bytes")]
        found = f"{each.checks[0].value:.0e}" if each.checks else "-"
        rates = f"{texts / each.ours:.1f}", f"{texts / each.peer:.1f}"
        rows.append((each.name, f"{texts}", *rates, ratio_cell(each), goal_cell(each.goal), *memory, found))
    columns = ("what", "texts a step", "our texts/s", "peer's texts/s", "ratio of times", "goal")
    return table((*columns, "our memory, MB", "peer's memory, MB", "largest difference in loss"), rows)


def training_on_a_gpu(file: Path) -> str:
    """Return what ``benchmarks.gpu_training`` left in its file, or how it is made."""
    title = "## Training steps on a GPU\n\n"
    if not file.exists():
        return (
            f"{title}Not measured. On a machine with a CUDA device `{GPU_COMMAND}` trains LoRA over random models in the shapes "
            "of Qwen3-Embedding 0.6B and 8B, in bfloat16 and nf4, beside sentence-transformers' trainer: tokens a second, the "
            "share of the device's measured peak, memory, and what the steps wait for."
        )
    found: dict[str, Any] = read_json(file)
    peak = (
        ""
        if found["matrix_peak"] is None
        else f"; a large bfloat16 product reaches {found['matrix_peak'] / 1e12:.0f} TFLOP/s"
    )
    columns = ("model", "base", "trained layers", "side", "texts/s", "tokens/s", "of the peak", "memory, GB")
    rows = [
        (
            *(each["model"], each["base"], f"{each['trained_layers']}", each["side"]),
            *(f"{each['texts_a_second']:.1f}", f"{each['tokens_a_second']:.0f}"),
            "-" if each["share_of_peak"] is None else f"{100 * each['share_of_peak']:.0f} %",
            "-" if each["peak_bytes"] is None else f"{each['peak_bytes'] / 1e9:.1f}",
            f"{each['largest_difference_in_loss']:.0e}",
            each.get("bound") or "-",
        )
        for each in found["rows"]
    ]
    return (
        f"{title}{found['device']}{peak}. Made by `{found['command']}`; versions: {json.dumps(found['versions'])}.\n\n"
        f"{table((*columns, 'largest difference in loss', 'waits for'), rows)}"
    )
