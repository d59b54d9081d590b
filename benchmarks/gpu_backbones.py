"""LoRA on a 7B-shaped random Mistral on a GPU, over a base in bfloat16 and in nf4, and a SLERP of what comes out.

    python -m benchmarks.gpu_backbones --output gpu_backbones.json

writes random weights in the shape of e5-mistral-7b-instruct (14 GB) and trains some steps of the six families'
data four times: in nf4 and bfloat16, without and with gradient checkpointing.  Each time it records seconds and
tokens a second, and the device's peak memory in training and at the end of the stage beside what
``train.py --plan`` says; then the last stage is merged with its base by files, computed on the device.  The result
is JSON.  ``--smoke`` runs the same with a tiny model on the CPU; memory is measured on a GPU only.
"""

import argparse
import gc
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import MistralConfig, MistralModel, PreTrainedTokenizerFast

from lightning_app.config import LoraConfig, StageConfig, TrainConfig
from lightning_app.fitting import fit_stage
from lightning_app.preparation import prepare
from lightning_app.run_memory import run_memory, run_sizes
from lightning_app.stages import read_run_data
from merging.engine import merge_checkpoints
from storage.atomic import write_text
from storage.json_file import write_json

WIDTH, INNER, LAYERS, HEADS, VALUES, VOCABULARY = 4096, 14336, 32, 32, 8, 32000
SMOKE = (64, 128, 2, 4, 2, 300)
TOKENS = 1024
WARM_UP = 2
SPECIAL = ("<unk>", "<s>", "</s>")
MODULES = "sentence_transformers.sentence_transformer.modules"
Base = Literal["none", "nf4"]


class StepClock(Callback):
    """Seconds and tokens of every step, and the device's peak memory up to the last one."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.began = device, 0.0
        self.seconds: list[float] = []
        self.tokens: list[int] = []
        self.losses: list[float] = []
        self.longest = 0
        self.peak: int | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count the tokens that are read and start the clock."""
        self.tokens.append(batch.tokens)
        self.longest = max(self.longest, *(part["attention_mask"].shape[1] for part in batch.parts))
        _wait(self.device)
        self.began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop it when the device is done."""
        _wait(self.device)
        self.seconds.append(time.perf_counter() - self.began)
        self.losses.append(float(outputs["loss"]))
        self.peak = _peak(self.device)


def write_base(folder: Path, device: torch.device, *, smoke: bool) -> Path:
    """A Mistral with random bfloat16 weights and a byte-level tokenizer, as sentence-transformers lays it out."""
    width, inner, layers, heads, values, vocabulary = (
        SMOKE if smoke else (WIDTH, INNER, LAYERS, HEADS, VALUES, VOCABULARY)
    )
    config = MistralConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=values,
        max_position_embeddings=TOKENS,
        sliding_window=TOKENS,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = MistralModel._from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder, max_shard_size="5GB")
    _tokenizer().save_pretrained(folder)
    lay_out(folder, width)
    return folder


def lay_out(folder: Path, width: int) -> None:
    """Make a transformers folder one of an embedder that takes the last token's state and has vectors of unit length."""
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {"idx": at, "name": str(at), "path": f"{at}_{kind}" if at else "", "type": f"{MODULES}.{kind}"}
        for at, kind in enumerate(kinds)
    ]
    pooling = {"embedding_dimension": width, "pooling_mode": "lasttoken", "include_prompt": True}
    for name, content in (
        ("modules.json", modules),
        ("1_Pooling/config.json", pooling),
        ("2_Normalize/config.json", {}),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        write_json(folder / name, content)


def _tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: at for at, token in enumerate((*SPECIAL, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(token, vocabulary[token]) for token in SPECIAL[1:]]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        model_max_length=TOKENS,
        padding_side="right",
    )


def train_steps(
    base: Path, output: Path, device: torch.device, *, quantization: Base, checkpointing: bool, steps: int, batch: int
) -> dict[str, Any]:
    """Train ``steps`` steps into ``output / "stage"``, and say what it took."""
    config = TrainConfig(
        backbone=str(base),
        stages=(
            StageConfig(
                name="six", families=("six",), epochs=1, steps_per_epoch=steps, classes=6, texts_per_class=batch // 6
            ),
        ),
        lora=LoraConfig(quantization=quantization),
        gradient_checkpointing=checkpointing,
        merges=(),
        accelerator="gpu" if device.type == "cuda" else "cpu",
        precision="bf16-mixed" if device.type == "cuda" else "32-true",
        output=str(output),
    )
    _forget(device)
    begin = time.perf_counter()
    data = replace(read_run_data(config), selection=None)
    run = prepare(config, data)
    loaded = time.perf_counter() - begin
    clock = StepClock(device)
    begin = time.perf_counter()
    fit_stage(run, data.stages[0], output / "stage", folder=output, suites={}, observers=[clock])
    fitted = time.perf_counter() - begin
    counted = clock.seconds[WARM_UP:]
    planned = run_memory(config, run_sizes(config, base, None), [(batch, clock.longest)])
    return {
        "base": "bfloat16" if quantization == "none" else quantization,
        "gradient_checkpointing": checkpointing,
        "texts_a_step": batch,
        "longest_tokens": clock.longest,
        "steps": len(clock.seconds),
        "seconds_a_step": statistics.median(counted),
        "tokens_a_second": sum(clock.tokens[WARM_UP:]) / sum(counted),
        "seconds_to_load_and_prove": loaded,
        "seconds_of_the_stage": fitted,
        "losses": clock.losses,
        "peak_bytes_in_training": clock.peak,
        "peak_bytes_with_the_end_of_the_stage": _peak(device),
        "planned_bytes": planned,
    }


def merge_on(device: torch.device, base: Path, stage: Path, output: Path) -> dict[str, Any]:
    """SLERP half-way from the base to the stage, by files, the coefficients and sums on the device."""
    _forget(device)
    begin = time.perf_counter()
    report = merge_checkpoints([base, stage], output, method="slerp", base=base, t=0.5, device=device.type)
    seconds = time.perf_counter() - begin
    written = sum(file.stat().st_size for file in output.glob("*.safetensors"))
    return {
        "method": "slerp",
        "seconds": seconds,
        "bytes_written": written,
        "peak_bytes": _peak(device),
        "mean_angle_degrees": report["summary"]["mean_angle_degrees"],
    }


def measure(
    scratch: Path, device: torch.device, *, bases: Sequence[Base], steps: int, batch: int, smoke: bool
) -> dict[str, Any]:
    """Write the base, train every way, merge the last."""
    begin = time.perf_counter()
    base = write_base(scratch / "base", device, smoke=smoke)
    written = time.perf_counter() - begin
    ways = [(quantization, checkpointing) for quantization in bases for checkpointing in (False, True)]
    runs = []
    for at, (quantization, checkpointing) in enumerate(ways):
        output = scratch / f"run-{at}"
        runs.append(
            train_steps(
                base, output, device, quantization=quantization, checkpointing=checkpointing, steps=steps, batch=batch
            )
        )
    return {
        "name": f"LoRA on a random Mistral of {_parameters(base) / 1e9:.2f} B parameters",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "versions": {name: _version(name) for name in ("torch", "transformers", "peft", "lightning", "bitsandbytes")},
        "seconds_to_write_the_base": written,
        "runs": runs,
        "merge": merge_on(device, base, scratch / f"run-{len(ways) - 1}" / "stage", scratch / "merged"),
    }


def _parameters(base: Path) -> int:
    return sum(file.stat().st_size for file in base.glob("*.safetensors")) // 2


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget(device: torch.device) -> None:
    """Let go of the run before, and count from here."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse flags, measure, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--bases", nargs="+", choices=("nf4", "none"), default=("nf4", "none"), help="none: bfloat16")
    parser.add_argument("--steps", type=int, default=10, help="of each run, the first two not counted")
    parser.add_argument("--batch", type=int, default=48, help="texts a step, a multiple of 6")
    parser.add_argument("--smoke", action="store_true", help="a tiny model on the CPU: shows that the program works")
    parser.add_argument("--scratch", type=Path, help="where 30 GB may lie for a while; left out: the temporary folder")
    parser.add_argument("--output", type=Path, help="also write the JSON to this file")
    told = parser.parse_args(arguments)
    if told.steps <= WARM_UP or told.batch < 12 or told.batch % 6:
        parser.error(
            f"expected more than {WARM_UP} steps and a batch of 12 or more by sixes, got {told.steps} and {told.batch}"
        )
    device = torch.device("cpu" if told.smoke else told.device)
    scratch = Path(tempfile.mkdtemp(prefix="gpu-backbones-", dir=told.scratch))
    try:
        result = measure(scratch, device, bases=told.bases, steps=told.steps, batch=told.batch, smoke=told.smoke)
    finally:
        shutil.rmtree(scratch)
    flags = f"--device {told.device} --bases {' '.join(told.bases)} --steps {told.steps} --batch {told.batch}"
    result["command"] = f"python -m benchmarks.gpu_backbones {flags}{' --smoke' if told.smoke else ''}"
    text = json.dumps(result, indent=2)
    print(text)
    if told.output is not None:
        write_text(told.output, text + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
