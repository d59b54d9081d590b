"""Training steps on a GPU: ours and sentence-transformers' trainer, on models in the shapes of Qwen3-Embedding 0.6B and 8B.

    python -m benchmarks.gpu_training --output gpu_training.json

writes random weights in bfloat16 (17 GB at most at once) and trains LoRA over them, in bfloat16 and in nf4, in all layers and
in the top quarter, where ours reads the states below from files that it has filled before.  Each row has texts and tokens a
second, the share of the measured peak of a large bfloat16 product that the steps reach, the device's peak memory, the largest
difference between both sides' losses, and what a profile of one of our steps says that it waits for.  The result is JSON.
``--smoke`` runs the same with tiny models on the CPU; what a GPU alone can tell is null there.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from sentence_transformers import SentenceTransformer
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen3Config, Qwen3Model

from benchmarks.gpu_backbones import _forget, _peak, _version, lay_out
from benchmarks.training_case import SHARES, TrainingCase, batches_of, settings_of, uneven_texts
from benchmarks.training_ours import Steps, train_ours, wait
from benchmarks.training_peer import train_peer
from data.training_texts import TrainingTexts
from lightning_app.module import ContrastiveEmbedder
from models.adapter import adapter_state, load_adapter_weights, transformer_of
from models.backbones import LLAMA_LINEAR
from models.embedder import load_embedder
from models.gradient_cache import embed_parts
from models.lora import add_lora, block_stack
from models.losses import supervised_contrastive_loss
from models.shapes import SHAPES
from models.tiny_llm import build_tiny_tokenizer
from storage.atomic import write_text

WARM_UP = 3
SIDE = 8192
"""Of the square matrices whose product gives the peak."""
LONGEST = {"qwen3-0.6b": 256, "qwen3-8b": 128}
"""Tokens of the longest text of each model's batches."""
SMOKE = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 300,
}  # fmt: skip
PRODUCTS = ("gemm", "nvjet", "cutlass", "xmma")
"""Parts of the names of kernels that multiply matrices."""
Base = Literal["none", "nf4"]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where and how long."""

    device: torch.device
    steps: int
    smoke: bool


def write_base(folder: Path, shape: str, place: Place) -> Path:
    """A Qwen3 with random bfloat16 weights and a tokenizer of bytes."""
    settings = dict(SHAPES[shape]) | (SMOKE if place.smoke else {})
    settings = {key: value for key, value in settings.items() if key not in ("model_type", "dtype")}
    tokenizer = build_tiny_tokenizer()
    config = Qwen3Config(
        **settings,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    with place.device:
        model = Qwen3Model._from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder, max_shard_size="5GB")
    tokenizer.save_pretrained(folder)
    lay_out(folder, config.hidden_size)
    return folder


def matrix_peak(device: torch.device) -> float | None:
    """Floating point operations a second of a large product in bfloat16; None on the CPU."""
    if device.type != "cuda":
        return None
    one, two = (torch.randn(SIDE, SIDE, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(30):
        wait()
        begin = time.perf_counter()
        one @ two
        wait()
        seconds.append(time.perf_counter() - begin)
    return 2 * SIDE**3 / min(seconds)


def operations_a_token(embedder: SentenceTransformer, *, trained: int, cached: bool) -> float:
    """Floating point operations of the linear layers a token: 2 a weight forward, 2 where a gradient goes through.

    Attention, LoRA and norms are left out, and so are the layers whose states are cached.
    """
    _, stack = block_stack(transformer_of(embedder))
    width = [
        sum(layer.in_features * layer.out_features for name, layer in block.named_modules() if _is_base(name, layer))
        for block in stack
    ]
    above = sum(width[-trained:])
    return 4.0 * above if cached else 2.0 * sum(width) + 2.0 * above


def _is_base(name: str, layer: torch.nn.Module) -> bool:
    return isinstance(layer, torch.nn.Linear) and "lora_" not in name


def waits_for(embedder: SentenceTransformer, data: TrainingTexts, batch: Sequence[int], place: Place) -> dict[str, Any]:
    """What one forward and backward pass of ours waits for, by a profile; nothing on the CPU."""
    if place.device.type != "cuda":
        return {"busy": None, "products": None, "bound": None}
    module, items = ContrastiveEmbedder(embedder), data.items()
    made = module.collate([items[at] for at in batch])
    parts = [{key: _placed(value, place.device) for key, value in part.items()} for part in made.parts]
    labels = made.targets[:, 0].to(place.device)
    order = made.order.to(place.device)

    def step() -> float:
        wait()
        begin = time.perf_counter()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            embeddings = embed_parts(embedder, parts).index_select(0, order)
        supervised_contrastive_loss(embeddings, labels).backward()
        wait()
        return time.perf_counter() - begin

    step()
    seconds = step()  # without the profiler, which slows the launches
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
        step()
    embedder.zero_grad()
    kernels = [(event.name.lower(), event.device_time_total) for event in profiled.events() if _on_device(event)]
    busy = sum(time_us for _, time_us in kernels)
    products = sum(time_us for name, time_us in kernels if any(each in name for each in PRODUCTS))
    share = min(1.0, busy * 1e-6 / seconds)
    bound = "launches" if share < 0.7 else "products" if products > busy / 2 else "memory"
    return {"busy": share, "products": products / max(busy, 1e-9), "bound": bound}


def _on_device(event: Any) -> bool:
    return event.device_type == torch.autograd.DeviceType.CUDA


def _placed(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


def train_both(
    folder: Path, base: Path, place: Place, peak: float | None, *, shape: str, kind: Base, top: bool
) -> list[dict[str, Any]]:
    """Rows of both sides over one base."""
    longest = 32 if place.smoke else LONGEST[shape]
    precision: Literal["32-true", "bf16-mixed"] = "32-true" if place.smoke else "bf16-mixed"
    _forget(place.device)
    embedder = load_embedder(base, device=place.device, dtype=torch.bfloat16, quantization=kind)
    _, stack = block_stack(transformer_of(embedder))
    trained = len(stack) // 4 if top else len(stack)
    add_lora(embedder, targets=LLAMA_LINEAR, adapt_top=trained if top else None)
    start = {name: weight.clone() for name, weight in adapter_state(embedder).items()}
    data = uneven_texts(embedder, longest=longest)
    batches = batches_of(data, per_class=len(SHARES), steps=place.steps)
    case = TrainingCase(model="tiny", adapt_top=trained if top else None, precision=precision)
    config = replace(
        settings_of(case, folder / "ours"),
        accelerator="gpu" if place.device.type == "cuda" else "cpu",
        backbone=str(base),
    )
    found: dict[str, tuple[Steps, int | None]] = {}
    for side in ("ours", "peer"):
        load_adapter_weights(embedder, start, source="the adapter as it was at first")
        embedder.train()
        _forget(place.device)
        if side == "ours":
            run = train_ours(embedder, data, folder / side, config=config, per_class=len(SHARES), steps=place.steps)
        else:
            run = train_peer(embedder, data, batches, folder / side, precision=precision, device=place.device.type)
        found[side] = run, _peak(place.device)
        embedder.to(place.device)
    counts = [len(tokens) for tokens in embedder.tokenizer([data.texts[at] for at in batches[0]])["input_ids"]]
    losses = zip(found["ours"][0].losses, found["peer"][0].losses, strict=True)
    difference = max(abs(ours - peer) for ours, peer in losses)
    bound = waits_for(embedder, data, batches[0], place)
    rows = []
    for side, (run, memory) in found.items():
        seconds = statistics.median(run.seconds(warm_up=WARM_UP))
        operations = (
            operations_a_token(embedder, trained=trained, cached=top and side == "ours") * sum(counts) / seconds
        )
        rows.append(
            {
                "model": shape,
                "base": "bfloat16" if kind == "none" else kind,
                "trained_layers": trained,
                "side": side,
                "seconds_a_step": seconds,
                "texts_a_second": len(counts) / seconds,
                "tokens_a_second": sum(counts) / seconds,
                "share_of_peak": None if peak is None else operations / peak,
                "peak_bytes": memory,
                "largest_difference_in_loss": difference,
                **(bound if side == "ours" and not top else {}),
            }
        )
    return rows


def measure(scratch: Path, place: Place, *, shapes: Sequence[str], bases: Sequence[Base]) -> dict[str, Any]:
    """Every model, base and choice of layers, one after the other."""
    peak = matrix_peak(place.device)
    rows: list[dict[str, Any]] = []
    for shape in shapes:
        base = write_base(scratch / shape, shape, place)
        for kind in bases:
            for top in (False, True):
                rows += train_both(scratch / "runs", base, place, peak, shape=shape, kind=kind, top=top)
                shutil.rmtree(scratch / "runs", ignore_errors=True)
        shutil.rmtree(base)
    return {
        "device": torch.cuda.get_device_name(place.device) if place.device.type == "cuda" else "CPU",
        "versions": {name: _version(name) for name in ("torch", "transformers", "peft", "sentence-transformers")},
        "matrix_peak": peak,
        "rows": rows,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse flags, measure, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", choices=tuple(LONGEST), default=tuple(LONGEST))
    parser.add_argument("--bases", nargs="+", choices=("none", "nf4"), default=("none", "nf4"), help="none: bfloat16")
    parser.add_argument("--steps", type=int, default=13, help=f"of each run, the first {WARM_UP} not counted")
    parser.add_argument("--smoke", action="store_true", help="tiny models on the CPU: shows that the program works")
    parser.add_argument("--scratch", type=Path, help="where 17 GB may lie for a while; left out: the temporary folder")
    parser.add_argument("--output", type=Path, help="also write the JSON to this file")
    told = parser.parse_args(arguments)
    if told.steps <= WARM_UP:
        parser.error(f"--steps: expected more than {WARM_UP}, got {told.steps}; leave it out for 13")
    place = Place(device=torch.device("cpu" if told.smoke else told.device), steps=told.steps, smoke=told.smoke)
    scratch = Path(tempfile.mkdtemp(prefix="gpu-training-", dir=told.scratch))
    try:
        result = measure(scratch, place, shapes=told.models, bases=told.bases)
    finally:
        shutil.rmtree(scratch)
    flags = f"--models {' '.join(told.models)} --bases {' '.join(told.bases)} --steps {told.steps}"
    result["command"] = f"python -m benchmarks.gpu_training {flags}{' --smoke' if told.smoke else ''}"
    text = json.dumps(result, indent=2)
    print(text)
    if told.output is not None:
        write_text(told.output, text + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
