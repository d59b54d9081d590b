"""What both sides of the training benchmark are given: a model, texts of chosen lengths, and the settings of a run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from sentence_transformers import SentenceTransformer

from data.families import FAMILIES, families_of
from data.sampler import LabelBatchSampler
from data.sequences import windows
from data.training_texts import TrainingTexts
from lightning_app.config import SIX_STAGE, TrainConfig
from models.backbones import find_backbone
from models.embedder import load_embedder
from models.lora import add_lora
from models.tiny_llm import build_tiny_llm

FILL = 0.36
"""Mean tokens of a batch's texts over the tokens of its longest."""
SHARES = (1.0, 0.62, 0.42, 0.30, 0.22, 0.16, 0.10, 0.06)
"""Tokens of the texts of a label, over the longest's; their mean is FILL."""
FEW_SHARES = (1.0, 0.30)
"""Of the runs that only compare losses."""
VARIANTS = 4
"""Texts of each label and length: every batch has other texts and the same lengths."""
LABELS = families_of("six")

Precision = Literal["32-true", "bf16-mixed"]
Texts = Literal["uneven", "windows"]


@dataclass(frozen=True, kw_only=True)
class TrainingCase:
    """One comparison."""

    model: str
    """A key of MODELS."""
    adapt_top: int | None = None
    """Layers with LoRA, from the top; None: all."""
    texts: Texts = "uneven"
    """Texts of FILL, or the windows that a run trains on."""
    longest: int = 96
    """Tokens of the longest of the uneven texts."""
    precision: Precision = "32-true"

    @property
    def name(self) -> str:
        """As the page has it."""
        where = "LoRA everywhere" if self.adapt_top is None else f"LoRA on the top {self.adapt_top}"
        texts = f"{FILL:.0%} filled" if self.texts == "uneven" else "the families' windows"
        return f"{self.model}, {where}, {texts}{', bf16-mixed' if self.precision == 'bf16-mixed' else ''}"


@dataclass(frozen=True, kw_only=True)
class Model:
    """How an embedder is made, and what LoRA adapts in it."""

    build: Callable[[], SentenceTransformer]
    targets: tuple[str, ...]
    layers: int


def _decoder(width: int, layers: int) -> Model:
    return Model(
        build=partial(
            build_tiny_llm, hidden_size=width, layers=layers, heads=width // 32, intermediate_size=3 * width, seed=0
        ),
        targets=find_backbone("tiny-llm").lora_targets,
        layers=layers,
    )


MODELS = {
    "all-minilm": Model(
        build=partial(load_embedder, "all-minilm"), targets=find_backbone("all-minilm").lora_targets, layers=6
    ),
    "decoder-16": _decoder(192, 16),
    "tiny": _decoder(32, 4),
}
"""The real all-MiniLM-L6-v2, a random Qwen3 decoder of 16 layers, and one that shows that the program works."""


def fresh(case: TrainingCase) -> SentenceTransformer:
    """The case's embedder with a new adapter and no dropout; the same weights at every call."""
    model = MODELS[case.model]
    torch.manual_seed(0)
    embedder = model.build()
    add_lora(embedder, targets=model.targets, adapt_top=case.adapt_top, seed=0)
    for module in embedder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return embedder.train()


def uneven_texts(embedder: SentenceTransformer, *, longest: int, shares: Sequence[float] = SHARES) -> TrainingTexts:
    """Terms of the six families, cut so that the texts of each label have ``shares`` of ``longest`` tokens.

    A text's block is its length: batches of all labels and ``len(shares)`` texts of each hold every length once a label.
    """
    texts, labels, blocks = [], [], []
    for label, family in enumerate(LABELS):
        for variant in range(VARIANTS):
            terms = [str(term) for term in FAMILIES[family].terms(5 * variant, 5 * variant + longest)]
            for block, share in enumerate(shares):
                texts.append(_cut(embedder, terms, round(share * longest)))
                labels.append(label)
                blocks.append(block)
    return TrainingTexts(texts=texts, labels=labels, blocks=blocks)


def _cut(embedder: SentenceTransformer, terms: Sequence[str], tokens: int) -> str:
    """As many first terms as have at most so many tokens, by halving; at least one."""
    low, high = 1, len(terms)
    while low < high:
        middle = (low + high + 1) // 2
        fits = len(embedder.tokenizer(", ".join(terms[:middle]))["input_ids"]) <= tokens
        low, high = (middle, high) if fits else (low, middle - 1)
    return ", ".join(terms[:low])


def texts_of(case: TrainingCase, embedder: SentenceTransformer, *, few: bool = False) -> TrainingTexts:
    """The texts of a case; ``few``: for short batches."""
    if case.texts == "windows":
        return windows_of_a_stage()
    return uneven_texts(embedder, longest=case.longest, shares=FEW_SHARES if few else SHARES)


def windows_of_a_stage() -> TrainingTexts:
    """What the last stage of a run trains on by default: the training windows of the six families."""
    rows = [(each, label) for label, family in enumerate(LABELS) for each in windows(family, "training")]
    return TrainingTexts(
        texts=[each.text for each, _ in rows],
        labels=[label for _, label in rows],
        blocks=[each.block for each, _ in rows],
    )


def batches_of(data: TrainingTexts, *, per_class: int, steps: int) -> list[list[int]]:
    """The batches that `LabelledDataModule` makes of the texts in the first epoch, seed 0, as places in them."""
    sampler = LabelBatchSampler(
        data.labels, classes=len(LABELS), per_class=per_class, batches=steps, seed=0, blocks=data.blocks
    )
    return list(sampler)


def texts_of_a_stage() -> int:
    """Different texts that the batches of a run's last stage draw by default, when no epoch ends it sooner."""
    data = windows_of_a_stage()
    sampler = LabelBatchSampler(
        data.labels,
        classes=len(LABELS),
        per_class=len(SHARES),
        batches=SIX_STAGE.steps_per_epoch,
        seed=0,
        blocks=data.blocks,
    )
    drawn: set[int] = set()
    for epoch in range(SIX_STAGE.epochs):
        sampler.set_epoch(epoch)
        drawn.update(place for batch in sampler for place in batch)
    return len(drawn)


def check_fill(embedder: SentenceTransformer, data: TrainingTexts, batches: Sequence[Sequence[int]]) -> float:
    """The mean fill of the batches.

    Raises:
        ValueError: it is further than 0.02 from FILL, so that the comparison would not be the one that its name says.
    """
    fills = [fill_of(embedder, [data.texts[place] for place in batch]) for batch in batches]
    mean = sum(fills) / len(fills)
    if abs(mean - FILL) > 0.02:
        raise ValueError(
            f"uneven texts: expected batches filled to {FILL:g}, got {mean:.3f}; change `longest` of the case"
        )
    return mean


def fill_of(embedder: SentenceTransformer, texts: Sequence[str]) -> float:
    """Mean tokens of the texts over the longest's."""
    lengths = [len(tokens) for tokens in embedder.tokenizer(list(texts), truncation=True)["input_ids"]]
    return sum(lengths) / len(lengths) / max(lengths)


def settings_of(case: TrainingCase, output: Path) -> TrainConfig:
    """The settings of our run, as the command has them."""
    return TrainConfig(
        backbone=case.model, adapt_top=case.adapt_top, precision=case.precision, accelerator="cpu", output=str(output)
    )
