"""SLERP of two 8B-shaped checkpoints that lie on a GPU, against the copy bandwidth measured beside it.

    python -m benchmarks.gpu_merge --output gpu_merge.json

builds the weights, checks merged tensors against float64, times, and counts launches and synchronisations by
the profiler; the result is JSON.  ``--shrink 64 --device cpu`` runs the same on a CPU in seconds.

A two-pass SLERP moves 10 bytes for each 16-bit parameter (two reads of two inputs and a write) and a copy 4;
the share of the bandwidth is bytes over seconds of the one divided by that of the other.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from merging.device import DeviceMerge, Solve, gram_on_device, merge_on_device, sum_on_device
from merging.device_window import open_window
from merging.gram import Gram
from merging.methods import find_method
from merging.options import Options
from merging.solution import Solution
from storage.atomic import write_text

SWEEP = (0.1, 0.3, 0.5, 0.7, 0.9)
BYTES_A_PARAMETER = 10
RANGE = "merge of a window"
LAUNCHES = ("LaunchKernel", "LaunchCooperativeKernel", "LaunchKernelEx")
KERNELS = ("measure_kernel", "add_up_kernel", "sum_kernel")
WAITS = ("StreamSynchronize", "DeviceSynchronize", "EventSynchronize", "CtxSynchronize")


def shapes(shrink: int) -> dict[str, tuple[int, ...]]:
    """The tensors of Qwen3-8B; every width divided by ``shrink``, and the layers by its root."""
    width, inner, values, vocabulary = (max(16, size // shrink) for size in (4096, 12288, 1024, 151936))
    found: dict[str, tuple[int, ...]] = {"embed_tokens": (vocabulary, width), "lm_head": (vocabulary, width)}
    for layer in range(max(2, 36 // math.isqrt(shrink))):
        part: dict[str, tuple[int, ...]] = {
            "q_proj": (width, width),
            "k_proj": (values, width),
            "v_proj": (values, width),
            "o_proj": (width, width),
        }
        part |= {"gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner)}
        part |= {"input_norm": (width,), "post_norm": (width,), "q_norm": (128,), "k_norm": (128,)}
        found |= {f"layers.{layer}.{name}": shape for name, shape in part.items()}
    return found


def weights(device: torch.device, shrink: int) -> tuple[list[str], list[list[Tensor]]]:
    """Two inputs that differ by about a third, in bfloat16."""
    generator = torch.Generator(device).manual_seed(0)
    inputs = []
    for shape in shapes(shrink).values():
        x = torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16) * 0.02
        y = x + torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16) * 0.007
        inputs.append([x, y])
    return list(shapes(shrink)), inputs


def slerp_at(*ts: float) -> Solve:
    """Coefficients of SLERP at each of ``ts`` for all tensors."""
    slerp = find_method("slerp").function

    def solve(gram: Gram) -> list[Solution]:
        groups = torch.zeros_like(gram.norms[:, 0])
        return [slerp(gram, torch.stack([groups + (1 - t), groups + t], 1), Options()) for t in ts]

    return solve


def check(merged: DeviceMerge, inputs: Sequence[Sequence[Tensor]], t: float) -> dict[str, float]:
    """The largest errors of angles and of values, over tensors of every kind, against float64."""
    angle_error = excess = differing = 0.0
    for place in range(min(13, len(inputs))):
        x, y = (tensor.double() for tensor in inputs[place])
        nx, ny = x.square().sum().sqrt(), y.square().sum().sqrt()
        theta = 2 * torch.atan2((x / nx - y / ny).square().sum().sqrt(), (x / nx + y / ny).square().sum().sqrt())
        length = ((1 - t) * nx + t * ny) / torch.sin(theta)
        x, y = x * (torch.sin((1 - t) * theta) / nx * length), y * (torch.sin(t * theta) / ny * length)
        exact, got = x + y, merged.outputs[0][place]
        # A unit in the last place of bfloat16, and where terms cancel, what float32 leaves of them.
        allowed = 2**-8 * exact.abs() + 1e-6 * (x.abs() + y.abs())
        excess = max(excess, float(((got - exact).abs() / allowed.clamp(min=1e-300)).max()))
        differing = max(differing, float((got != exact.float().bfloat16()).float().mean()))
        angle_error = max(angle_error, float((merged.angles[place, 0, 1] - theta).abs() / theta))
    assert angle_error < 1e-6, f"angles are off by {angle_error:.1e}"
    assert excess <= 1, f"values are off by {excess:.3g} times what rounding explains"
    return {"angle_error": angle_error, "value_error_of_rounding": excess, "share_rounded_otherwise": differing}


def seconds(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """The median of whole calls, to the end of what they left to the device."""
    taken = []
    for repeat in range(repeats + 2):
        _wait(device)
        begin = time.perf_counter()
        work()
        _wait(device)
        if repeat >= 2:
            taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def counts(work: Callable[[], Any], device: torch.device) -> dict[str, int]:
    """Launches of kernels, waits and copies to the host of one call, by the profiler."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        with record_function(RANGE):
            work()
        _wait(device)
    events = [event for event in profiler.events() or [] if event.device_type.name == "CPU"]
    span = next(event.time_range for event in events if event.name == RANGE)
    inside = [event.name for event in events if span.start <= event.time_range.start < span.end]
    names = [name.removeprefix("cuda").removeprefix("cu") for name in inside if name.startswith("cu")]
    return {
        "launches": sum(name.startswith(LAUNCHES) for name in names),
        "synchronisations": sum(name.startswith(WAITS) for name in names),
        "own_kernels": sum(event.name in KERNELS for event in profiler.events() or []),
    }


def one_by_one(inputs: Sequence[Sequence[Tensor]], outputs: Sequence[Tensor], t: float) -> None:
    """The peer: a loop over tensors that asks the device for every angle."""
    for (x, y), output in zip(inputs, outputs, strict=True):
        a, b = x.float(), y.float()
        theta = math.acos(max(-1.0, min(1.0, float((a * b).sum() / (a.norm() * b.norm())))))
        scale = math.sin(theta) or 1.0
        output.copy_(math.sin((1 - t) * theta) / scale * a + math.sin(t * theta) / scale * b)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(device: torch.device, shrink: int, repeats: int) -> dict[str, Any]:
    """Build, check, time and count."""
    names, inputs = weights(device, shrink)
    parameters = sum(row[0].numel() for row in inputs)
    outputs = [torch.empty_like(row[0]) for row in inputs]
    merge = partial(merge_on_device, inputs, None, slerp_at(0.5), outputs=[outputs], names=names)
    accuracy = check(merge(), inputs, 0.5)

    large = max((row[0] for row in inputs), key=Tensor.numel)
    source, target = (torch.empty(8 * large.numel(), dtype=torch.bfloat16, device=device).fill_(1) for _ in range(2))
    copy = seconds(lambda: target.copy_(source), device, 4 * repeats)
    bandwidth = 2 * source.numel() * source.element_size() / copy
    del source, target

    ours = seconds(merge, device, repeats)
    peer = seconds(lambda: one_by_one(inputs, outputs, 0.5), device, repeats)
    window = open_window(inputs, names=names)
    measured = gram_on_device(window)
    first_pass = seconds(lambda: gram_on_device(window), device, repeats)
    sweep = [outputs, *([torch.empty_like(row[0]) for row in inputs] for _ in SWEEP[1:])]
    solutions = slerp_at(*SWEEP)(measured.gram)
    swept = seconds(lambda: sum_on_device(window, measured, solutions, outputs=sweep), device, repeats)
    return {
        "name": f"slerp of two bf16 checkpoints of {parameters / 1e9:.2f} B parameters on the device",
        "peer_is": "a loop over tensors in plain torch, float32",
        "ours": ours,
        "peer": peer,
        "ratio": ours / peer,
        "repeats": repeats,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, plain passes",
        "versions": {"torch": torch.__version__, "triton": _triton_version()},
        "parameters": parameters,
        "tensors": len(inputs),
        "copy_bytes_per_second": bandwidth,
        "merge_bytes_per_second": BYTES_A_PARAMETER * parameters / ours,
        "share_of_copy_bandwidth": BYTES_A_PARAMETER * parameters / ours / bandwidth,
        "first_pass_seconds": first_pass,
        "first_pass_share": 4 * parameters / first_pass / bandwidth,
        "sweep": {"values_of_t": len(SWEEP), "seconds_of_the_sum": swept},
        "accuracy": accuracy,
        "profiler": counts(merge, device),
    }


def _triton_version() -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("triton")
    except PackageNotFoundError:
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse flags, measure, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shrink", type=int, default=1, help="divide every width by this")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--output", type=Path, help="also write the JSON to this file")
    told = parser.parse_args(arguments)
    result = measure(torch.device(told.device), told.shrink, told.repeats)
    flags = f"--device {told.device} --shrink {told.shrink} --repeats {told.repeats}"
    result["command"] = f"python -m benchmarks.gpu_merge {flags}"
    text = json.dumps(result, indent=2)
    print(text)
    if told.output is not None:
        write_text(told.output, text + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
