"""Every knob of ``pretrain.py``. Standard library only, like `lightning_app.config`."""

import shlex
from dataclasses import dataclass
from typing import Any

from lightning_app.config import Plain


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Plain):
    """Make the built-in tiny-llm: causal language modelling on integer sequences, then a generic contrastive stage."""

    output: str = "models/pretrained/tiny-llm"
    """Folder to write."""
    init: str | None = None
    """An earlier output to start from (with --language-steps 0: to repeat the second stage only); its log is carried over."""
    hidden_size: int = 128
    """Width."""
    layers: int = 5
    """Decoder layers."""
    intermediate_size: int = 384
    """Width of the gated MLP."""
    language_steps: int = 1200
    """Steps of the first stage."""
    language_batch: int = 64
    """Sequences a step of the first stage."""
    language_rate: float = 3e-3
    """Peak learning rate of the first stage."""
    contrastive_steps: int = 400
    """Steps of the second stage."""
    contrastive_batch: int = 48
    """Pairs a step of the second stage."""
    contrastive_rate: float = 1e-3
    """Peak learning rate of the second stage."""
    temperature: float = 0.1
    """Temperature of the pairs' InfoNCE."""
    language_weight: float = 0.5
    """Weight of the next-token loss in the second stage."""
    part: int = 16
    """Sequences a forward pass of the first stage (sorted by length)."""
    evaluate_every: int = 50
    """Steps between evaluations."""
    validation_texts: int = 256
    """Sequences of the validation loss."""
    bf16: bool = True
    """Run the matrix products in bfloat16."""
    threads: int = 2
    """CPU threads; the weights depend on it."""
    seed: int = 0
    """Seed of weights and data."""
    overwrite: bool = False
    """Replace what is in --output."""
    config: str | None = None
    """A JSON or YAML file of these settings; flags win over it."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""

    def command(self) -> str:
        """The command that makes these weights, but for where they are written."""
        changed = [
            part
            for key, value in self.to_dict().items()
            if value != self.__dataclass_fields__[key].default and key not in ("config", "json", "overwrite", "output")
            for part in _flag(key.replace("_", "-"), value)
        ]
        return shlex.join(["python", "pretrain.py", *changed])


def _flag(name: str, value: Any) -> tuple[str, ...]:
    """The words that set ``name`` on the command line; switches take no value."""
    if isinstance(value, bool):
        return (f"--{name}" if value else f"--no-{name}",)
    return (f"--{name}", str(value))
