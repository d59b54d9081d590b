"""Before a run writes anything: the model loaded, the adapter on it, and the proof that both fit the texts."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from data.suites import Suite, broad_suite, held_out_suite, large_suite, matched_suite, paper_suite
from lightning_app.adapted_names import adapted_names
from lightning_app.config import TrainConfig
from lightning_app.loading import loading_options, pinned
from lightning_app.memory_warning import warn_of_memory
from lightning_app.objective import check_fits, objective
from lightning_app.run_memory import computes_on_gpu
from lightning_app.stages import RunData, StageData
from models.adapter import find_adapter
from models.backbones import Backbone, lookup_backbone
from models.checkpointing import checkpoint_blocks
from models.embedder import base_folder, check_lengths, encode, load_embedder
from models.lora import add_lora
from models.origin import row_of
from models.packing import packs
from models.prefix_cache import PrefixCache
from models.preflight import preflight
from models.remote_code import find_remote_code
from models.token_rows import TokenRows


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
    selection_base: torch.Tensor | None = None
    """The base's embeddings of the selection suite, (n, d), once they are known."""
    prefix: PrefixCache | None = None
    """The states below the adapted blocks, on the embedder."""

    @property
    def adapts(self) -> bool:
        """Whether an adapter is trained (else all weights are)."""
        return find_adapter(self.embedder) is not None

    def encode(self, texts: Any, embedder: SentenceTransformer | None = None) -> torch.Tensor:
        """Embeddings by the model as it is now."""
        return encode((embedder or self.embedder).to(self.device), texts)


def _refuse_own_code(config: TrainConfig, base: Path) -> None:
    """Stages and merges are read again without the code of a model's own; better told before the first step."""
    if config.trust_remote_code and (code := find_remote_code(base)) is not None:
        raise ValueError(
            f"--trust-remote-code: expected a backbone whose stages and merges are read without code of its own, but "
            f"{config.backbone} needs class {code.name} of {code.file}; evaluate.py can measure it, training takes a "
            "version of the model that transformers has"
        )


def _local_rank() -> int:
    """Which device of this machine is this process's: Lightning's and torchrun's variable, or SLURM's."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))


def prepare(config: TrainConfig, data: RunData) -> Run:
    """Load the model, put the adapter on, and prove that it can be trained on these texts; writes nothing."""
    _check_adapting(config)
    torch.manual_seed(config.seed)
    name, revision = pinned(config.backbone)
    row = lookup_backbone(name)
    scratch = row is not None and row.from_scratch
    check_fits(config, adapts=not scratch, dimension=None if row is None else row.dimension)
    base = None
    if not scratch:
        base = base_folder(
            name,
            revision=revision,
            cache=config.cache,
            offline=config.offline,
            pickled_weights=config.pickled_weights,
            code=config.trust_remote_code,
        )
        _refuse_own_code(config, base)
        row = row or row_of(base)
        warn_of_memory(config, data, folder=base, row=row)
    accelerated = computes_on_gpu(config)
    device = torch.device("cuda", _local_rank()) if accelerated else torch.device("cpu")
    # Proofs and preflight compute where the run does. A process that is forked later must not have touched a GPU.
    place = torch.device("cpu") if config.strategy == "ddp_fork" else device
    embedder = load_embedder(name, device=place, **loading_options(config))
    suites = {"large": large_suite(), "held-out": held_out_suite(), "matched": matched_suite()}
    if config.data is not None:
        suites = {} if data.reported is None else {"data": data.reported}
    for suite in (paper_suite(), broad_suite(), *suites.values(), *([data.selection] if data.selection else [])):
        check_lengths(embedder, suite.texts, source=f"suite {suite.name}")
    for stage in data.stages:
        check_lengths(embedder, stage.data.texts, source=config.data or f"stage {stage.name}")
    if scratch:
        if config.lora.use_dora or config.lora.use_rslora or config.lora.dense == "train":
            raise ValueError(
                f"--backbone {config.backbone}: expected --lora.use-dora, --lora.use-rslora and --lora.dense to be left "
                "alone, as all its weights are trained without an adapter; drop them"
            )
        embedder.requires_grad_(True)
    else:
        _adapt(embedder, config, row)
    if config.gradient_checkpointing:
        checkpoint_blocks(embedder)
    prompt = embedder.default_prompt_name
    run = Run(
        config=config,
        data=data,
        embedder=embedder,
        base=base,
        suites=suites,
        device=device,
        prompt=None if prompt is None else embedder.prompts[prompt],
    )
    _check_packing(run)
    _preflight(run, data.stages[0])
    return run


def _check_packing(run: Run) -> None:
    """Prove that the model reads packed texts one by one."""
    if run.config.batching != "packed":
        return
    rows = TokenRows(run.embedder, prompt=run.prompt)
    if not packs(run.embedder, [rows.row(text) for text in run.data.stages[0].data.texts[:3]]):
        raise ValueError(
            f"--batching packed: expected a model that reads packed texts one by one (a causal decoder), got {run.config.backbone}, "
            "whose embeddings change; take --batching sorted"
        )


def _check_adapting(config: TrainConfig) -> None:
    """What no merge could carry or no strategy could spread is refused before anything is loaded."""
    if config.strategy == "fsdp" and config.ranks > 1 and config.lora.quantization != "none":
        raise ValueError(
            f"--strategy fsdp: expected a base in full precision, got --lora.quantization {config.lora.quantization}; drop "
            "one of the two (with --strategy ddp every device holds the whole base)"
        )
    if config.lora.dense == "train" and config.merges:
        raise ValueError(
            "--lora.dense train: expected no merges, which read adapters, and these hold no Dense modules, got "
            f"{' '.join(config.merges)}; give --merges without a name, or leave --lora.dense at freeze"
        )


def _adapt(embedder: SentenceTransformer, config: TrainConfig, row: Backbone | None) -> None:
    """LoRA as asked for; targets and experts are those of the backbone's row unless they are named."""
    lora = config.lora
    targets, experts = adapted_names(lora, row)
    add_lora(
        embedder,
        r=lora.r,
        alpha=lora.alpha,
        dropout=lora.dropout,
        targets=targets,
        adapt_top=config.adapt_top,
        use_dora=lora.use_dora,
        use_rslora=lora.use_rslora,
        expert_parameters=experts,
        dense=lora.dense,
        seed=config.seed,
    )


def _preflight(run: Run, stage: StageData) -> None:
    """One small batch of the first stage through the run's own objective: two labels with two texts each, or two whole pairs."""
    members: dict[int, list[int]] = {}
    for place, label in enumerate(stage.data.labels):
        members.setdefault(label, []).append(place)
    first, *others = ({stage.data.texts[i]: i for i in each} for each in members.values())
    # Two pairs with a text in common may be no negatives of each other: their loss would be 0.
    second = next((other for other in others if not first.keys() & other.keys()), others[0])
    size = stage.per_class if stage.data.in_pairs else 2
    batch = stage.data.part([*first.values()][:size] + [*second.values()][:size])
    loss = objective(run.config, batch, run.embedder)
    targets = torch.tensor([(item.label, item.place, item.role) for item in batch.items()])
    preflight(
        run.embedder,
        batch.texts,
        targets[:, 0],
        lambda embeddings, labels: loss(embeddings, targets.to(labels.device)),
    )
