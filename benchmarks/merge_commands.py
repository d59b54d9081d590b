"""Merges of files as whole commands: ours, mergekit's, and a plain read and write of the same bytes.

Checkpoints have the shapes of Qwen3-0.6B in bfloat16 (1.2 GB each).  Commands take turns; hashing and fsync are
part of ours.  Peak memory is that of the command's process.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import mergekit
from storage.tensor_file import Entry, TensorFileWriter, bytes_of, read_tensors

ROOT = mergekit.ROOT
LAYERS = 28
HIDDEN, INNER, VOCABULARY = 1024, 3072, 151936
RELATIVE_CHANGE = 0.03
"""Noise of each checkpoint, relative to the standard deviation of the tensor."""

PLAIN = """
import os, sys
*inputs, output = sys.argv[1:]
piece = memoryview(bytearray(2**20))
target = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
for place, path in enumerate(inputs):
    source = os.open(path, os.O_RDONLY)
    while count := os.readv(source, [piece]):
        if place == 0:
            os.write(target, piece[:count])
os.fsync(target)
"""
"""Reads every input and writes as much as one of them, with fsync."""


@dataclass(frozen=True)
class Run:
    """One command that was run to its end."""

    seconds: float
    peak_bytes: int


def shapes(layers: int = LAYERS, vocabulary: int = VOCABULARY) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the tensors of a Qwen3-0.6B in the order of its files."""
    yield "model.embed_tokens.weight", (vocabulary, HIDDEN)
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (HIDDEN,)
        yield prefix + "mlp.down_proj.weight", (HIDDEN, INNER)
        yield prefix + "mlp.gate_proj.weight", (INNER, HIDDEN)
        yield prefix + "mlp.up_proj.weight", (INNER, HIDDEN)
        yield prefix + "post_attention_layernorm.weight", (HIDDEN,)
        yield prefix + "self_attn.k_norm.weight", (128,)
        yield prefix + "self_attn.k_proj.weight", (1024, HIDDEN)
        yield prefix + "self_attn.o_proj.weight", (HIDDEN, 2048)
        yield prefix + "self_attn.q_norm.weight", (128,)
        yield prefix + "self_attn.q_proj.weight", (2048, HIDDEN)
        yield prefix + "self_attn.v_proj.weight", (1024, HIDDEN)
    yield "model.norm.weight", (HIDDEN,)


def write_checkpoint(folder: Path, seed: int, *, layers: int = LAYERS, vocabulary: int = VOCABULARY) -> Path:
    """Write a checkpoint near one base, a tensor at a time."""
    folder.mkdir(parents=True)
    names = dict(shapes(layers, vocabulary))
    entries = [Entry(name, "BF16", shape) for name, shape in names.items()]
    with TensorFileWriter(folder / "model.safetensors", entries, {"format": "pt"}) as writer:
        for place, (name, shape) in enumerate(names.items()):
            base = 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(place))
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(1000 * seed + place))
            writer.write(name, bytes_of((base + 0.02 * RELATIVE_CHANGE * noise).bfloat16()))
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def ours(method: str, inputs: Sequence[Path], output: Path, memory: str = "2GiB") -> list[str]:
    """Return our command."""
    return [
        *(sys.executable, "merge.py", "--method", method, "--inputs", *map(str, inputs)),
        *("--output", str(output), "--overwrite", "--threads", "2", "--memory", memory),
    ]


def peers(method: str, inputs: Sequence[Path], output: Path) -> list[str]:
    """Return mergekit's command."""
    recipe = output.parent / f"{method}.yaml"
    recipe.write_text(mergekit.recipe(method, list(inputs)))
    return [str(mergekit.command()), str(recipe), str(output)]


def plain(inputs: Sequence[Path], output: Path) -> list[str]:
    """Return the command that only reads and writes."""
    return [sys.executable, "-c", PLAIN, *(str(path / "model.safetensors") for path in inputs), str(output)]


def run(command: Sequence[str]) -> Run:
    """Run a command with two threads for torch and say what it took."""
    environment = os.environ | {"OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    begin = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    complaint = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    if os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(f"{' '.join(command)}: {complaint[-2000:]}")
    return Run(seconds, usage.ru_maxrss * 1024)


def in_turn(
    commands: Sequence[Sequence[str]], repeats: int, tidy: Callable[[], None] = lambda: None
) -> list[list[Run]]:
    """Run commands in turn ``repeats`` times, after one round that is not counted; returns the runs of each."""
    runs: list[list[Run]] = [[] for _ in commands]
    for turn in range(repeats + 1):
        for command, kept in zip(commands, runs, strict=True):
            tidy()
            os.sync()
            done = run(command)
            if turn:
                kept.append(done)
    return runs


def median(runs: Sequence[Run]) -> float:
    """Return the median of the seconds."""
    return statistics.median(one.seconds for one in runs)


def largest_difference(one: Path, other: Path) -> float:
    """Return the largest difference of two merges in units of bfloat16's last place, tensor by tensor and element by element."""
    first, second = (read_tensors(path / "model.safetensors") for path in (one, other))
    assert first.keys() == second.keys()
    worst = 0.0
    for name, a in first.items():
        b = second[name]
        spacing = torch.maximum(a.float().abs(), b.float().abs()).clamp(min=2.0**-120).log2().floor().exp2() * 2.0**-7
        worst = max(worst, float(((a.float() - b.float()).abs() / spacing).max()))
    return worst
