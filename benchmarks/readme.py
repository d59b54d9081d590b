"""The page that the benchmarks write about themselves."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import (
    evaluation_metrics,
    in_process,
    merge_commands,
    merge_sizes,
    mergekit_agreement,
    training_page,
    training_speed,
)
from benchmarks.mergekit import VERSION
from benchmarks.result import Check, Result, command_of
from benchmarks.table import goal_cell, megabytes, ratio_cell, table
from storage.json_file import read_json

GPU_FILE = "gpu_merge.json"
GPU_COMMAND = f"python -m benchmarks.gpu_merge --output benchmarks/{GPU_FILE}"

METRICS_FILE = "gpu_metrics.json"
METRICS_COMMAND = f"python -m benchmarks.gpu_metrics --output benchmarks/{METRICS_FILE}"

BACKBONES_FILE = "gpu_backbones.json"
BACKBONES_COMMAND = f"python -m benchmarks.gpu_backbones --output benchmarks/{BACKBONES_FILE}"

UNEVEN = 1.5


def page(results: Sequence[Result], folder: Path, *, quick: bool = False) -> str:
    """Return the page in Markdown; ``folder`` holds what was measured on a GPU, if anything was."""
    sections = [_heading(results, quick)] if quick else [_heading(results, quick), _goals(results)]
    for part, section in SECTIONS.items():
        mine = [result for result in results if result.part == part]
        title, before, table = section
        body = f"{before}\n\n{table(mine)}" if mine else f"Not measured; `{command_of(part)}` does."
        sections.append(f"## {title}\n\n{body}{_notes(mine)}")
    sections += [
        training_page.training_on_a_gpu(folder / training_page.GPU_FILE),
        _backbones_on_a_gpu(folder / BACKBONES_FILE),
        _metrics_on_a_gpu(folder / METRICS_FILE),
        _on_a_gpu(folder / GPU_FILE),
    ]
    return "\n\n".join(sections) + "\n"


def _heading(results: Sequence[Result], quick: bool) -> str:
    lines = [
        "# Benchmarks",
        "Made by `make bench`; `python -m benchmarks PART ...` runs some parts again and keeps the others. "
        "Seconds are medians of interleaved runs and depend on the machine; ratios do much less, and below 1 ours is "
        "faster. The numbers are in `results.json`.",
    ]
    if quick:
        lines.append("**A quick run on tiny inputs: it shows that the program works and nothing about speed.**")
    threads = sorted({(result.part, result.threads, result.repeats) for result in results})
    lines.append(
        "Runs: " + "; ".join(f"{part} on {count} threads, {repeats} a side" for part, count, repeats in threads) + "."
    )
    uneven = [f"{result.name} ({result.spread:.1f} x)" for result in results if result.spread > UNEVEN]
    if uneven and not quick:
        lines.append(
            f"**Uneven runs**: the slowest took more than {UNEVEN} x the fastest, so something else ran on the machine "
            f"and the ratio is not to be trusted: {'; '.join(uneven)}."
        )
    return "\n\n".join(lines)


def _goals(results: Sequence[Result]) -> str:
    checked = [(result, check) for result in results for check in result.goals]
    untold = [result for result in results if result.goal is not None and result.ratio is None]
    missed = [(result, check) for result, check in checked if not check.met]
    words = [f"{len(checked) - len(missed)} of {len(checked)} goals are met."]
    words += [f"- **Not met**: {result.name}: {_reached(check)}." for result, check in missed]
    words += [f"- **Not told**: {result.name}." for result in untold]
    words += [
        f"- Met: {result.name}: {_reached(check)}."
        for result, check in checked
        if check.met and result.part != mergekit_agreement.PART
    ]
    agreeing = [check for result, check in checked if check.met and result.part == mergekit_agreement.PART]
    if agreeing:
        words.append(
            f"- Met: {len(agreeing)} methods agree with mergekit: {max(check.value for check in agreeing):.1e} or less, "
            f"asked for at most {agreeing[0].goal:g}."
        )
    return "## Goals\n\n" + "\n".join([words[0], "", *words[1:]]).rstrip()


def _reached(check: Check) -> str:
    unit = f" {check.unit}" if check.unit else ""
    return f"{check.what} {check.value:.3g}{unit}, asked for at most {check.goal:.3g}{unit}"


def _compared(results: Sequence[Result]) -> str:
    return table(
        ("what", "peer", "ours, s", "peer, s", "ratio", "goal"),
        (
            (each.name, each.peer_is, f"{each.ours:.3f}", f"{each.peer:.3f}", ratio_cell(each), goal_cell(each.goal))
            for each in results
        ),
    )


def _metrics(results: Sequence[Result]) -> str:
    rows = []
    for each in results:
        details = each.details or {}
        memory = [megabytes(details[key]) if key in details else "-" for key in ("peak_bytes", "peer_peak_bytes")]
        found = f"{details['difference']:.0e}" if "difference" in details else "-"
        seconds = f"{each.ours:.3f}", f"{each.peer:.3f}", ratio_cell(each), goal_cell(each.goal)
        rows.append((each.name, each.peer_is, *seconds, *memory, found))
    columns = (
        "what",
        "peer",
        "ours, s",
        "peer, s",
        "ratio",
        "goal",
        "our memory, MB",
        "peer's memory, MB",
        "difference",
    )
    return table(columns, rows)


def _commands(results: Sequence[Result]) -> str:
    rows = []
    for each in results:
        details = each.details or {}
        found = details["difference"]
        rows.append(
            (
                *(each.name, f"{each.ours:.2f}", f"{each.peer:.2f}", ratio_cell(each), goal_cell(each.goal)),
                *(megabytes(details["peak_bytes"]), megabytes(details["peer_peak_bytes"])),
                *(f"{found['of_result']:.3g}", f"{100 * found['share']:.2g} %"),
            )
        )
    columns = ("what", "ours, s", "mergekit, s", "ratio", "goal", "our peak, MB", "mergekit's peak, MB")
    return table((*columns, "largest difference, last places", "elements that differ"), rows)


def _sizes(results: Sequence[Result]) -> str:
    sizes = [each for each in results if each.checks]
    rows = [
        (
            *(each.name, f"{each.ours:.2f}", f"{each.peer:.2f}", ratio_cell(each)),
            *(megabytes((each.details or {})["peak_bytes"]), f"{each.checks[0].value:.0f}"),
            goal_cell(each.checks[0].goal),
        )
        for each in sizes
    ]
    columns = ("what", "ours, s", "plain, s", "ratio", "our peak, MB", "above the budget, MB", "goal")
    slopes = [
        (each.name, f"{each.ours:.3f}", f"{each.peer:.3f}", ratio_cell(each), goal_cell(each.goal))
        for each in results
        if not each.checks
    ]
    slope = table(("beyond start-up", "ours, s a GB", "plain, s a GB", "ratio", "goal"), slopes)
    return f"{table(columns, rows)}\n\n{slope}"


def _agreement(results: Sequence[Result]) -> str:
    rows = [
        (
            *(
                (each.details or {})["method"],
                f"{each.checks[0].value:.1e}",
                f"`{(each.details or {})['worst_tensor']}`" if each.checks[0].value else "equal in all",
            ),
            *(goal_cell(each.checks[0].goal), "yes" if each.checks[0].met else "**no**"),
        )
        for each in results
    ]
    return table(("method", "largest relative difference", "in tensor", "goal", "met"), rows)


SECTIONS: dict[str, tuple[str, str, Callable[[Sequence[Result]], str]]] = {
    training_speed.PART: (training_page.TITLE, training_page.BEFORE, training_page.training_table),
    merge_commands.PART: (
        "Whole commands against mergekit's",
        f"`python merge.py` against `mergekit-yaml` {VERSION} on checkpoints with the shapes of Qwen3-0.6B in bfloat16; "
        "start-up counts on both sides, hashing and fsync on ours. A difference is counted in units of the last place "
        "of the larger of the two results.",
        _commands,
    ),
    merge_sizes.PART: (
        "Three sizes against a plain read and write",
        "SLERP of two against a program that reads the same inputs, writes as many bytes and calls fsync. "
        "The peak is that of the process, start-up included.",
        _sizes,
    ),
    mergekit_agreement.PART: (
        "Agreement with mergekit",
        f"One recipe a method, by `mergekit-yaml` {VERSION} and by `python merge.py --recipe FILE --compat mergekit`, on "
        "Llama models of two layers in float32: the norm of the difference over the norm of mergekit's tensor, the "
        "largest of all tensors. Methods with random masks run at density 1, since each side draws its own.",
        _agreement,
    ),
    evaluation_metrics.PART: (
        "Silhouettes against scikit-learn's",
        "One thread on both sides. Memory is what the process grows by at most during the call, in a process of its own, "
        "apart from the embeddings. The last row of cosine is beside one look at each row: scikit-learn's n x n distances "
        "would take hours.",
        _metrics,
    ),
    in_process.PART: (
        "Calls in one process",
        "Ours also checks inputs; the merge records angles and hashes and calls fsync, the peer does not.",
        _compared,
    ),
}
"""Title, introduction and table of each part."""


def _on_a_gpu(file: Path) -> str:
    """Return what ``benchmarks.gpu_merge`` left in its file, or how it is made."""
    title = "## On a GPU\n\n"
    if not file.exists():
        return (
            f"{title}Not measured. On a machine with a CUDA device `make test-gpu` runs the tests, `{GPU_COMMAND}` measures "
            "SLERP of two 8B-shaped checkpoints that lie on the device (asked for: at least 70 % of the measured copy "
            "bandwidth) and counts launches and synchronisations, and the next `make bench` puts them here."
        )
    found: dict[str, Any] = read_json(file)
    profiled = ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in found["profiler"].items())
    return (
        f"{title}{found['name']} ({found['device']}): {found['ours']:.4f} s, {found['share_of_copy_bandwidth']:.0%} of the "
        f"copy bandwidth (asked for: at least 70 %); {found['peer_is']}: {found['peer']:.4f} s. Profiler: {profiled}. "
        f"Made by `{found['command']}`; versions: {json.dumps(found['versions'])}."
    )


def _metrics_on_a_gpu(file: Path) -> str:
    """Return what ``benchmarks.gpu_metrics`` left in its file, or how it is made."""
    title = "## Silhouettes on a GPU\n\n"
    if not file.exists():
        return f"{title}Not measured; on a machine with a CUDA device `{METRICS_COMMAND}` does."
    found: dict[str, Any] = read_json(file)
    rows = [
        [each["name"], *(_told(each[key], scale) for key, scale in (("ours", 1), ("peer", 1), ("peak_bytes", 1e-6)))]
        for each in found["rows"]
    ]
    differences = ", ".join(f"{metric} {value:.0e}" for metric, value in found["differences"].items())
    return (
        f"{title}{found['device']}; the peer is {found['peer_is']}. Largest differences from the CPU and the peer: "
        f"{differences}. Made by `{found['command']}`; versions: {json.dumps(found['versions'])}.\n\n"
        f"{table(('what', 'ours, s', 'peer, s', 'our memory, MB'), rows)}"
    )


def _backbones_on_a_gpu(file: Path) -> str:
    """Return what ``benchmarks.gpu_backbones`` left in its file, or how it is made."""
    title = "## Training an 8B-shaped model on a GPU\n\n"
    if not file.exists():
        return (
            f"{title}Not measured. On a machine with a CUDA device `{BACKBONES_COMMAND}` trains a random Mistral of "
            "e5-mistral's shape with LoRA over nf4 and over bfloat16, with and without gradient checkpointing, and merges on "
            "the device; the file has memory, times and tokens a second."
        )
    return f"{title}```json\n{json.dumps(read_json(file), indent=2)}\n```"


def _told(value: float | None, scale: float) -> str:
    return "-" if value is None else f"{value * scale:.4g}"


def _notes(results: Iterable[Result]) -> str:
    return "".join(f"\n\n{result.note}" for result in results if result.note)
