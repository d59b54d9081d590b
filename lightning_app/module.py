"""ContrastiveEmbedder: an embedder and the supervised contrastive loss, as a LightningModule.

Dimension names: b texts a rank, n texts of all ranks, d embedding.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule
from sentence_transformers import SentenceTransformer
from torch import Tensor

from callbacks.gathering import gathered_rows
from data.training_texts import Item
from models.embedder import encode
from models.gradient_cache import embed_parts
from models.losses import supervised_contrastive_loss
from models.partition import partition
from models.sharding import load_wholes, sharded_copy, whole_tensor
from models.token_rows import TokenRows

Objective = Callable[[Tensor, Tensor], Tensor]
"""Embeddings (n, d) and targets (n, 3: label, place, role), of all ranks -> the loss."""


class Batch(NamedTuple):
    """One rank's share of a batch; tensors that a step needs on its device, counts that it does not."""

    parts: list[dict[str, Any]]
    """Features of texts of like length, each as ``preprocess`` gives them."""
    order: Tensor
    """(b,): the place in the parts, laid below each other, of each text."""
    targets: Tensor
    """(b, 3): label, place in the training texts, role (see `data.training_texts.Item`)."""
    tokens: int
    """Tokens of the texts."""
    padded: int
    """Tokens of the parts, padding included."""


class ContrastiveEmbedder(LightningModule):
    """Trains whatever weights of ``embedder`` are trainable, so that texts of one label lie together.

    Every rank sees the same global loss over the embeddings of all ranks, with gradients through the gather: the gradient does
    not depend on the number of ranks. A step's randomness (dropout) is a function of (seed, step, rank) alone. Checkpoints
    hold the trainable weights only. Under ``ShardedStrategy`` a copy of the embedder is trained whose weights are spread over
    the ranks; the embedder itself stays whole, on the CPU, and gets what is put back by ``load_state_dict``.

    Args:
        embedder: A sentence-transformers model, with an adapter from ``add_lora`` or with all its weights trainable.
        learning_rate: Peak of AdamW's; it rises over ``warmup_steps`` and falls along a cosine to a tenth.
        total_steps: Length of the schedule.
        temperature: Of the loss.
        prompt: Put before every text. None: the embedder's default.
        seed: Of dropout.
        objective: Embeddings (n, d) and targets (n, 3) of all ranks -> the loss. None: the supervised contrastive loss by label.
        batching: ``sorted``: a batch in parts of like length; ``padded``: in one.
        token_budget: Most tokens of a part, which is then computed again in the backward pass. None: no limit.

    Reference: Khosla et al. 2020, Supervised Contrastive Learning, https://arxiv.org/abs/2004.11362
    """

    strict_loading = False

    def __init__(
        self,
        embedder: SentenceTransformer,
        *,
        learning_rate: float = 1e-3,
        total_steps: int = 100,
        warmup_steps: int = 5,
        temperature: float = 0.1,
        prompt: str | None = None,
        seed: int = 0,
        objective: Objective | None = None,
        batching: Literal["sorted", "padded", "packed"] = "sorted",
        token_budget: int | None = None,
    ) -> None:
        super().__init__()
        self.embedder = embedder
        self.objective: Objective = objective if objective is not None else self._by_label
        self.batching, self.token_budget = batching, token_budget
        self._rows: TokenRows | None = None
        self.learning_rate, self.total_steps, self.warmup_steps = learning_rate, total_steps, warmup_steps
        self.temperature, self.prompt, self.seed = temperature, prompt, seed
        # In a tuple, so that it is no module of this one beside its copy.
        self._whole: tuple[SentenceTransformer, ...] = ()

    def configure_model(self) -> None:
        """Put a sharded copy in the embedder's place where the strategy has a mesh of devices; all ranks together."""
        if self.device_mesh is not None and not self._whole:
            self._whole = (self.embedder.to("cpu"),)
            self.embedder = sharded_copy(self._whole[0], self.device_mesh["data_parallel"])

    def on_train_end(self) -> None:
        """Give the whole embedder what the copy has learned."""
        if self._whole:
            self.load_state_dict(self.state_dict())

    def teardown(self, stage: str) -> None:
        """Put the whole embedder back, so that the copy can be freed."""
        if self._whole:
            (self.embedder,), self._whole = self._whole, ()

    def _by_label(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        return supervised_contrastive_loss(embeddings, targets[:, 0], temperature=self.temperature)

    def forward(self, features: dict[str, Any]) -> Float[Tensor, "b d"]:
        """Embeddings of tokenised texts, with gradient (``encode`` has none)."""
        return self.embedder(features)["sentence_embedding"]

    def tokenise(self, texts: Sequence[str]) -> None:
        """Read texts before the first batch does, so that processes that make batches ready find them read."""
        self.rows.add(texts)

    @property
    def rows(self) -> TokenRows:
        """What the tokenizer made of each text so far."""
        if self._rows is None:
            self._rows = TokenRows(self.embedder, prompt=self.training_prompt())
        return self._rows

    def collate(self, items: Sequence[Item | tuple[str, int]]) -> Batch:
        """Items (or (text, label) pairs) -> a batch in parts of like length."""
        read = [Item(*item) for item in items]
        rows = [self.rows.row(item.text) for item in read]
        lengths = [len(row["input_ids"]) for row in rows]
        whole = [list(range(len(rows)))]
        places = whole if self.batching == "padded" else partition(lengths, budget=self.token_budget)
        order = torch.empty(len(rows), dtype=torch.long)
        order[torch.tensor([place for part in places for place in part])] = torch.arange(len(rows))
        return Batch(
            parts=[self.rows.padded([rows[place] for place in part]) for part in places],
            order=order,
            targets=torch.tensor([(item.label, item.place, item.role) for item in read]),
            tokens=sum(lengths),
            padded=sum(len(part) * max(lengths[place] for place in part) for part in places),
        )

    def training_prompt(self) -> str | None:
        """What a bare ``encode()`` puts before a text: the given prompt, or the embedder's default one."""
        if self.prompt is not None:
            return self.prompt
        name = self.embedder.default_prompt_name
        return None if name is None else self.embedder.prompts[name]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Reseed, so that a resumed run draws what an uninterrupted one would have drawn."""
        torch.manual_seed(hash_seed(self.seed, self.global_step, self.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        """The loss of the global batch."""
        parts = embed_parts(self.embedder, batch.parts, recompute=self.token_budget is not None)
        embeddings, targets = parts.index_select(0, batch.order), batch.targets
        if self.trainer.world_size > 1:
            embeddings = gathered_rows(self, embeddings, gradients=True)
            targets = gathered_rows(self, targets)
        loss = self.objective(embeddings, targets)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch.order))
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the gradient's norm before clipping."""
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        self.log("train/gradient_norm", whole_tensor(torch.nn.utils.get_total_norm(gradients)))

    def configure_optimizers(self) -> Any:
        """AdamW on the trainable weights; linear warm-up, then a cosine to a tenth of the peak."""
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=self.learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self._rate(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))

    def encode(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Embeddings without gradient, float32 on the CPU, in the embedder's own way."""
        return encode(self.embedder, texts, prompt=self.prompt)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """The trainable weights, whole: the base is found again by name and fingerprint. All ranks together."""
        trainable = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        prefix = kwargs.get("prefix", "")
        state = super().state_dict(*args, **kwargs)
        return {name: whole_tensor(each) for name, each in state.items() if name.removeprefix(prefix) in trainable}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load what ``state_dict`` gave: every trainable weight, and nothing else.

        Raises:
            ValueError: a name that is missing or left over.
        """
        expected = self.state_dict().keys()
        if different := sorted(expected ^ state_dict.keys()):
            raise ValueError(
                f"checkpoint: expected the {len(expected)} trainable tensors of this model, got {len(state_dict)}; "
                f"first that differs: {different[0]}; resume with the settings of the run"
            )
        if not self._whole:
            return super().load_state_dict(state_dict, strict=False, assign=assign)
        for embedder in (self.embedder, *self._whole):
            weights = {f"embedder.{name}": weight for name, weight in embedder.named_parameters()}
            load_wholes({name: weights[name] for name in state_dict}, state_dict)
        return None


def hash_seed(*parts: int) -> int:
    """A seed of 63 bits from some integers, the same on every machine."""
    value = 0x9E3779B97F4A7C15
    for part in parts:
        value = (value ^ (part + 0x7F4A7C15)) * 0xBF58476D1CE4E5B9 % (1 << 64)
        value ^= value >> 29
    return value >> 1
