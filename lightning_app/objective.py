"""What a run minimises: the contrastive loss asked for, at the lengths asked for, and the term that keeps the base's geometry.

Dimension names: n texts of a batch (over all ranks), d their embedding's length, u different training texts.
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Integer
from sentence_transformers import SentenceTransformer
from torch import Tensor

from data.training_texts import TrainingTexts
from lightning_app.config import TrainConfig
from models.adapter import find_adapter
from models.base_embeddings import base_embeddings
from models.gram_distance import gram_distance
from models.info_nce import ANCHOR, POSITIVE, info_nce_loss, text_pairs
from models.losses import supervised_contrastive_loss
from models.matryoshka import matryoshka_loss
from models.prefix_lengths import check_dimensions

Objective = Callable[[Float[Tensor, "n d"], Integer[Tensor, "n 3"]], Float[Tensor, ""]]
"""Embeddings and targets (label, place, role: see `data.training_texts.Item`) of all ranks -> the loss."""


def objective(config: TrainConfig, data: TrainingTexts, embedder: SentenceTransformer) -> Objective:
    """The loss of a stage as a function of tensors: contrastive, or its mean over --matryoshka, plus --geometry-weight times
    the distance of the batch's similarities from the base's.

    The base's embeddings of all texts are computed here, once, with the adapter switched off: those of the base also in a later
    stage, and never a step's work. They follow the batch to its device and stay there (u x d x 4 bytes).

    Args:
        config: of the run.
        data: what the targets' places are places of.
        embedder: as it will be trained, on the device that shall compute the base's embeddings.

    Raises:
        ValueError: as `check_fits` says.
    """
    check_fits(config, adapts=find_adapter(embedder) is not None, dimension=embedder.get_embedding_dimension())
    contrast = _contrast(config, data)
    if config.matryoshka:
        contrast = partial(_at_all_lengths, contrast, config.matryoshka)
    return contrast if config.geometry_weight == 0 else _NearBase(contrast, config.geometry_weight, data, embedder)


def check_fits(config: TrainConfig, *, adapts: bool, dimension: int | None) -> None:
    """The model has what the objective asks of it: an embedding that is longer than its prefixes, a base to stay near to.

    Args:
        config: of the run.
        adapts: whether an adapter is trained, and not the model's own weights.
        dimension: of the model's embedding. None: not known yet.

    Raises:
        ValueError: --matryoshka dimensions that the embedding does not have; --geometry-weight for a model from scratch.
    """
    check_dimensions(config.matryoshka, dimension, name="--matryoshka")
    if config.geometry_weight > 0 and not adapts:
        raise ValueError(
            f"--geometry-weight {config.geometry_weight}: expected an adapter on a base whose geometry can be kept, got "
            f"--backbone {config.backbone}, which is trained from scratch; leave the weight at 0"
        )


def _contrast(config: TrainConfig, data: TrainingTexts) -> Objective:
    if config.objective == "supcon":
        return partial(_by_label, config.temperature)
    return _ByPair(config.temperature, data) if data.in_pairs else partial(_by_two_of_a_label, config.temperature)


def _by_label(temperature: float, embeddings: Tensor, targets: Tensor) -> Tensor:
    return supervised_contrastive_loss(embeddings, targets[:, 0], temperature=temperature)


class _ByPair:
    """InfoNCE that knows of all pairs of the data, also those that are not in a batch."""

    def __init__(self, temperature: float, data: TrainingTexts) -> None:
        self.temperature = temperature
        places: tuple[dict[int, int], dict[int, int]] = ({}, {})
        for item in data.items():
            if item.role in (ANCHOR, POSITIVE):
                places[item.role][item.label] = item.place
        anchors, positives = places
        self.known = text_pairs(
            torch.tensor(list(anchors.values())), torch.tensor([positives[label] for label in anchors])
        )

    def __call__(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        labels, places, roles = targets.unbind(dim=1)
        self.known = self.known.to(embeddings.device)  # by the first step only
        return info_nce_loss(embeddings, labels, roles, texts=places, known=self.known, temperature=self.temperature)


def _by_two_of_a_label(temperature: float, embeddings: Tensor, targets: Tensor) -> Tensor:
    """Two texts of a label are a pair without a direction: the first of them is the anchor, and both directions count."""
    labels, places, _ = targets.unbind(dim=1)
    row = torch.arange(len(labels), device=labels.device)
    before = (places < places[:, None]) | ((places == places[:, None]) & (row < row[:, None]))
    roles = ((labels == labels[:, None]) & before).sum(dim=1)
    return info_nce_loss(embeddings, labels, roles, temperature=temperature, symmetric=True)


def _at_all_lengths(contrast: Objective, dimensions: tuple[int, ...], embeddings: Tensor, targets: Tensor) -> Tensor:
    return matryoshka_loss(lambda prefix: contrast(prefix, targets), embeddings, dimensions)


class _NearBase:
    """A loss plus the weighted distance from the base, whose embeddings it holds."""

    def __init__(self, contrast: Objective, weight: float, data: TrainingTexts, embedder: SentenceTransformer) -> None:
        self.contrast, self.weight = contrast, weight
        distinct = {text: row for row, text in enumerate(dict.fromkeys(data.texts))}
        self.base = base_embeddings(embedder, list(distinct))
        self.row_of_place = torch.tensor([distinct[text] for text in data.texts])

    def __call__(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        # Moved by the first step only; a tensor that is there already is given back as it is.
        self.base, self.row_of_place = self.base.to(embeddings.device), self.row_of_place.to(embeddings.device)
        base = self.base.index_select(0, self.row_of_place.index_select(0, targets[:, 1]))
        return self.contrast(embeddings, targets) + self.weight * gram_distance(embeddings, base)
