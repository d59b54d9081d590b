"""warn_of_memory: one line, before a model is loaded, where its run would need more memory than there is."""

from pathlib import Path

import psutil
import torch

from lightning_app.config import TrainConfig
from lightning_app.plan_text import size_text
from lightning_app.plan_tokenizer import plan_tokenizer, prompt_of
from lightning_app.presentation import announce
from lightning_app.run_memory import computes_on_gpu, run_memory, run_sizes
from lightning_app.stages import RunData
from models.backbone import Backbone

GROUP = Path("/sys/fs/cgroup")
"""Limits of a container, on Linux."""


def warn_of_memory(config: TrainConfig, data: RunData, *, folder: Path, row: Backbone | None) -> None:
    """Say on stderr what a run would need, what is there and the way out; the run goes on. No weight is read.

    A model that cannot be counted without its own code is not warned of.

    Args:
        config: of the run.
        data: what it trains on.
        folder: of the base, local.
        row: its row of BACKBONES, if it has one.
    """
    have = available_memory(config)
    if have is None:
        return
    try:
        sizes = run_sizes(config, folder, row)
        prompt = prompt_of(folder)
        # A token is a byte at least, so that most runs are known to fit before a text is tokenised.
        longest = [max(len((prompt + text).encode()) for text in each.data.texts) + 16 for each in data.stages]
        sizes_of_batches = [each.classes * each.per_class // config.ranks for each in data.stages]
        memory = run_memory(config, sizes, list(zip(sizes_of_batches, longest, strict=True)))
        if memory["peak"] > have and (tokenizer := plan_tokenizer(folder, row)) is not None:
            longest = [
                max(
                    len(ids)
                    for ids in tokenizer([prompt + text for text in each.data.texts], verbose=False)["input_ids"]
                )
                for each in data.stages
            ]
            memory = run_memory(config, sizes, list(zip(sizes_of_batches, longest, strict=True)))
    except (ValueError, OSError, RuntimeError, LookupError, AttributeError, TypeError):  # the loader says what is wrong
        return
    if (line := shortage(config, memory, have)) is not None:
        announce(line)


def shortage(config: TrainConfig, memory: dict[str, int], available: int) -> str | None:
    """The warning for the memory that a device needs and has; None where it is enough.

    Example:
        >>> shortage(TrainConfig(), {"peak": 5, "merged": 0}, 5) is None
        True
        >>> memory = {"peak": 9_000, "merged": 0}
        >>> shortage(TrainConfig(), memory, 5_000).partition(";")[0]
        'warning: about 9 kB of memory needed, 5 kB available'
    """
    if memory["peak"] <= available:
        return None
    ways = []
    if memory["merged"] == memory["peak"]:
        ways.append("--merges without a name (a merge is measured in full precision)")
    else:
        ways += ["--lora.quantization nf4"] if config.lora.quantization == "none" else []
        ways += [] if config.gradient_checkpointing else ["--gradient-checkpointing"]
        ways.append("smaller batches (--stages.0.classes, --stages.0.texts-per-class)")
        ways += [] if config.token_budget else ["--token-budget 4096 (the same loss in parts)"]
        spread = config.strategy == "fsdp" or config.lora.quantization != "none"
        ways += [] if spread or config.ranks == 1 else ["--strategy fsdp"]
    each = "" if config.ranks == 1 else " on each device"
    return (
        f"warning: about {size_text(memory['peak'])} of memory needed{each}, {size_text(available)} available; "
        f"try {', '.join(ways)}; the run goes on"
    )


def available_memory(config: TrainConfig) -> int | None:
    """Bytes that a device of the run could take now; None where asking would get in the run's way.

    On the CPU the processes share what the machine, or the container, has left.
    """
    if computes_on_gpu(config):
        if config.strategy == "ddp_fork":  # refuses a process that has talked to the GPU
            return None
        return int(torch.cuda.mem_get_info()[0])
    left = int(psutil.virtual_memory().available)
    limit = GROUP / "memory.max"
    if limit.is_file() and (most := limit.read_text().strip()).isdigit():
        told = dict(line.split() for line in (GROUP / "memory.stat").read_text().splitlines())
        used = int((GROUP / "memory.current").read_text()) - int(told.get("inactive_file", 0))
        left = min(left, max(0, int(most) - used))
    return left // config.devices
