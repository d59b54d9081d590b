"""ContrastiveEmbedder: an embedder and the supervised contrastive loss, as a LightningModule.

Dimension names: b texts a rank, n texts of all ranks, d embedding.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule
from sentence_transformers import SentenceTransformer
from torch import Tensor

from callbacks.gathering import gathered_rows
from models.embedder import encode
from models.losses import supervised_contrastive_loss
from models.sharding import load_wholes, sharded_copy, whole_tensor

Batch = tuple[dict[str, Any], Tensor]


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
    ) -> None:
        super().__init__()
        self.embedder = embedder
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

    def forward(self, features: dict[str, Any]) -> Float[Tensor, "b d"]:
        """Embeddings of tokenised texts, with gradient (``encode`` has none)."""
        return self.embedder(features)["sentence_embedding"]

    def collate(self, items: Sequence[tuple[str, int]]) -> Batch:
        """(text, label) pairs -> (features, labels)."""
        texts, labels = zip(*items, strict=True)
        return dict(self.embedder.preprocess(list(texts), prompt=self.training_prompt())), torch.tensor(labels)

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
        features, labels = batch
        embeddings = self(features)
        if self.trainer.world_size > 1:
            embeddings = gathered_rows(self, embeddings, gradients=True)
            labels = gathered_rows(self, labels)
        loss = supervised_contrastive_loss(embeddings, labels, temperature=self.temperature)
        self.log("train/loss", loss.detach(), prog_bar=True)
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
