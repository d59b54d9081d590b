"""Before a run writes anything: the model loaded, the adapter on it, and the proof that both fit the texts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from data.suites import Suite, broad_suite, held_out_suite, large_suite, matched_suite, paper_suite
from lightning_app.config import TrainConfig
from lightning_app.stages import RunData, StageData
from models.adapter import find_adapter
from models.backbones import lookup_backbone
from models.embedder import base_folder, check_lengths, encode, load_embedder
from models.lora import add_lora
from models.losses import supervised_contrastive_loss
from models.preflight import preflight


@dataclass(kw_only=True)
class Run:
    """What the parts of a run share."""

    config: TrainConfig
    data: RunData
    embedder: SentenceTransformer
    base: Path | None
    """Folder of the base's weights; None for a model that is drawn from its seed."""
    suites: Mapping[str, Suite]
    device: torch.device
    prompt: str | None

    @property
    def adapts(self) -> bool:
        """Whether an adapter is trained (else all weights are)."""
        return find_adapter(self.embedder) is not None

    def encode(self, texts: Any, embedder: SentenceTransformer | None = None) -> torch.Tensor:
        """Embeddings by the model as it is now."""
        return encode((embedder or self.embedder).to(self.device), texts)


def prepare(config: TrainConfig, data: RunData) -> Run:
    """Load the model, put the adapter on, and prove that it can be trained on these texts; writes nothing."""
    torch.manual_seed(config.seed)
    row = lookup_backbone(config.backbone)
    scratch = row is not None and row.from_scratch
    base = None if scratch else base_folder(config.backbone, cache=config.cache, offline=config.offline)
    embedder = load_embedder(config.backbone, cache=config.cache, offline=config.offline, seed=config.seed)
    suites = {"large": large_suite(), "held-out": held_out_suite(), "matched": matched_suite()}
    if config.data is not None:
        suites = {} if data.reported is None else {"data": data.reported}
    for suite in (paper_suite(), broad_suite(), *suites.values(), *([data.selection] if data.selection else [])):
        check_lengths(embedder, suite.texts, source=f"suite {suite.name}")
    for stage in data.stages:
        check_lengths(embedder, stage.data.texts, source=config.data or f"stage {stage.name}")
    if scratch:
        embedder.requires_grad_(True)
    else:
        targets = config.lora.targets or (row.lora_targets if row is not None else ()) or None
        add_lora(
            embedder,
            r=config.lora.r,
            alpha=config.lora.alpha,
            dropout=config.lora.dropout,
            targets=targets,
            adapt_top=config.adapt_top,
            seed=config.seed,
        )
    name = embedder.default_prompt_name
    accelerated = torch.cuda.is_available() and config.accelerator in ("auto", "gpu", "cuda")
    run = Run(
        config=config,
        data=data,
        embedder=embedder,
        base=base,
        suites=suites,
        device=torch.device("cuda" if accelerated else "cpu"),
        prompt=None if name is None else embedder.prompts[name],
    )
    _preflight(run, data.stages[0])
    return run


def _preflight(run: Run, stage: StageData) -> None:
    """One small batch of the first stage through the loss: two labels, two texts each."""
    first = stage.data.labels[0]
    second = next(label for label in stage.data.labels if label != first)
    chosen = [
        i for wanted in (first, second) for i in [k for k, label in enumerate(stage.data.labels) if label == wanted][:2]
    ]
    preflight(
        run.embedder,
        [stage.data.texts[i] for i in chosen],
        torch.tensor([stage.data.labels[i] for i in chosen]),
        lambda embeddings, labels: supervised_contrastive_loss(embeddings, labels, temperature=run.config.temperature),
    )
