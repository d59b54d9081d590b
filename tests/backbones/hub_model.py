"""HubModel: one backbone of the table as a tiny folder in a hub cache, loaded, trained and saved once for all columns.

Dimension names: n texts, t tokens, d length of an embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch import Tensor

from lightning_app.completing import completing
from merging import merge_checkpoints
from models import backbones
from models.backbone import Backbone
from models.embedder import encode, load_embedder
from models.export import save_adapter
from models.lora import add_lora
from models.losses import supervised_contrastive_loss
from tests.models.hub_folders import write_hub_folder

TEXTS = ["1, 2, 3", "2, 4, 8, 16, 32", "7, 8", "3, 9, 27, 81"]
LABELS = torch.tensor([0, 1, 0, 1])
TASK = "group the numbers"


@dataclass
class HubModel:
    """A row of BACKBONES with a folder laid out like its repository, two layers deep."""

    name: str
    cache: Path
    """A hub cache of its own."""
    work: Path
    """An empty folder for what the columns write."""
    width: int = 16
    """Hidden size; 4 bits need 64."""
    cards: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    """Embeddings by the card's recipe, of a prefix and a text."""

    @property
    def row(self) -> Backbone:
        return backbones.BACKBONES[self.name]

    @cached_property
    def folder(self) -> Path:
        """The snapshot in the hub cache, at the commit that the row names."""
        folder = write_hub_folder(self.cache, self.name, width=self.width)
        assert self.row.revision is not None
        return folder.rename(folder.with_name(self.row.revision))

    @property
    def prompt(self) -> str:
        """What the card puts before a text that is stored."""
        return self.row.prompts.get("document", "")

    def load(self, **settings: Any) -> SentenceTransformer:
        """By its name and without a network, as a user does."""
        assert self.folder.is_dir()
        return self.open(self.name, **settings)

    def open(self, name_or_path: str | Path, **settings: Any) -> SentenceTransformer:
        """What `load_embedder` makes of a name or folder, where the row has the dimension of the tiny folder."""
        rows = tuple(replace(row, dimension=self.width) for row in backbones.BACKBONES.values())
        with mock.patch.object(backbones, "_ROWS", rows):
            return load_embedder(name_or_path, cache=self.cache, offline=True, **settings)

    def adapted(self, **settings: Any) -> SentenceTransformer:
        """Loaded anew, with LoRA on the layers and expert weights that its row names."""
        return adapt(self.load(**settings), self.row)

    def wider(self, width: int) -> HubModel:
        """The same model with another hidden size, in folders of its own."""
        folders = [folder.with_name(f"{folder.name}-{width}") for folder in (self.cache, self.work)]
        for folder in folders:
            folder.mkdir(exist_ok=True)
        return HubModel(self.name, *folders, width=width)

    @cached_property
    def trained(self) -> SentenceTransformer:
        """Adapted and trained by three steps; in evaluation mode, and only read from here on."""
        embedder = self.adapted()
        train(embedder)
        return embedder.eval()

    @cached_property
    def embeddings(self) -> Tensor:
        """The trained model's, (n, d)."""
        return encode(self.trained, TEXTS, prompt=self.prompt)

    @cached_property
    def stage(self) -> Path:
        """The trained adapter as a folder."""
        return save_adapter(self.trained, self.work / "stage", base_name=self.name, base_folder=self.folder)

    def merged(self, inputs: list[Path], **settings: Any) -> Path:
        """A merge by files with the snapshot as base; made once for each set of settings."""
        folder = self.work / f"{settings['method']}"
        if not folder.is_dir():
            merge_checkpoints(
                inputs,
                folder,
                base=self.folder,
                complete=completing(row=self.row),
                **settings,
            )
        return folder


def adapt(embedder: SentenceTransformer, row: Backbone) -> SentenceTransformer:
    """Put LoRA where the row says."""
    add_lora(embedder, r=2, alpha=8, targets=row.lora_targets, expert_parameters=row.expert_parameters)
    return embedder


def model_named(name: str, folder: Path) -> HubModel:
    """A model whose hub cache and other folders are made in `folder`."""
    places = [folder / name / part for part in ("cache", "work")]
    for place in places:
        place.mkdir(parents=True)
    return HubModel(name, *places)


def loss_of(embedder: SentenceTransformer) -> Tensor:
    """The contrastive loss over TEXTS."""
    return supervised_contrastive_loss(embedder(embedder.preprocess(TEXTS))["sentence_embedding"], LABELS)


def train(embedder: SentenceTransformer) -> None:
    """Three steps of Adam; the gradients of the last one are left in place."""
    optimizer = torch.optim.Adam([each for each in embedder.parameters() if each.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(embedder).backward()
        optimizer.step()


def trains(embedder: SentenceTransformer) -> None:
    """Every adapter weight has a gradient after three steps, and nothing else has."""
    for name, weight in embedder.named_parameters():
        assert weight.requires_grad == (".lora_" in name), name
        assert (weight.grad is not None and weight.grad.abs().max() > 0) == weight.requires_grad, name


def weights_of(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's weight files, under the names that they have there."""
    return {name: each for file in sorted(folder.glob("*.safetensors")) for name, each in load_file(file).items()}
