"""ContrastiveEmbedder: an embedder and the supervised contrastive loss, as a LightningModule.

Dimension names: b texts a rank, n texts of all ranks, d embedding.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.optim import Optimizer

from callbacks.gathering import gathered_rows
from data.training_texts import Item
from lightning_app.agreement import Agreement
from lightning_app.batch import Batch, Batching, make_batch, make_parts
from lightning_app.memory_trial import memory_trial, tries_memory
from lightning_app.part_budget import PartBudget
from lightning_app.step_seed import hash_seed
from models.embedder import encode
from models.gradient_cache import embed_parts
from models.losses import supervised_contrastive_loss
from models.part_cutting import as_many_parts
from models.sharding import load_wholes, sharded_copy, whole_tensor
from models.token_rows import Row, TokenRows

Objective = Callable[[Tensor, Tensor], Tensor]
"""Embeddings (n, d) and targets (n, 3: label, place, role), of all ranks -> the loss."""


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
        token_budget: Most tokens of a part, which is then computed again in the backward pass. None: no limit, until the device
            has no memory for a step: then half of the largest part (see `PartBudget`).

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
        batching: Batching = "sorted",
        token_budget: int | None = None,
    ) -> None:
        super().__init__()
        self.embedder = embedder
        self.objective: Objective = objective if objective is not None else self._by_label
        self.batching, self.budget = batching, PartBudget(token_budget)
        self._rows: TokenRows | None = None
        self._norm: Tensor | None = None
        self._agreement: Agreement | None = None
        self.learning_rate, self.total_steps, self.warmup_steps = learning_rate, total_steps, warmup_steps
        self.temperature, self.prompt, self.seed = temperature, prompt, seed
        # In a tuple, so that it is no module of this one beside its copy.
        self._whole: tuple[SentenceTransformer, ...] = ()

    def configure_model(self) -> None:
        """Put a sharded copy in the embedder's place where the strategy has a mesh of devices; all ranks together."""
        if self.device_mesh is not None and not self._whole:
            self._whole = (self.embedder.to("cpu"),)
            self.embedder = sharded_copy(self._whole[0], self.device_mesh["data_parallel"])
            self._agreement = Agreement()

    def on_train_start(self) -> None:
        """Take the rate of now: a resumed run may be allowed another one, or more steps, than its state was saved with."""
        for each in self.trainer.lr_scheduler_configs:
            schedule: Any = each.scheduler
            schedule.base_lrs = [self.learning_rate for _ in schedule.base_lrs]
            for group in schedule.optimizer.param_groups:
                group["initial_lr"] = self.learning_rate
                group["lr"] = self.learning_rate * self._rate(schedule.last_epoch)
            schedule._last_lr = [group["lr"] for group in schedule.optimizer.param_groups]

    def on_train_end(self) -> None:
        """Give the whole embedder what the copy has learned."""
        if self._whole:
            self.load_state_dict(self.state_dict())

    def teardown(self, stage: str) -> None:
        """Put the whole embedder back, so that the copy can be freed."""
        if self._whole:
            (self.embedder,), self._whole = self._whole, ()
        self._agreement = None

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
        return make_batch(read, self.rows, batching=self.batching, budget=self.budget.tokens)

    def training_prompt(self) -> str | None:
        """What a bare ``encode()`` puts before a text: the given prompt, or the embedder's default one."""
        if self.prompt is not None:
            return self.prompt
        name = self.embedder.default_prompt_name
        return None if name is None else self.embedder.prompts[name]

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Cut the parts while they are on the CPU: a process that made them ready may know an older budget.

        Where the weights are spread every rank has to make as many passes as the others, so they agree on the most of any.
        """
        if self._agreement is None and self.trainer.world_size > 1 and tries_memory(self.device):
            self._agreement = Agreement()
            longest = self.rows.longest(len(batch.order))
            with self.budget.announced():
                memory_trial(self.budget, lambda: self._try_pass(longest), self._agreement)
        parts = self.budget.cut(batch.parts)
        if self._whole and self._agreement is not None:
            parts = as_many_parts(parts, self._agreement.of(len(parts), "most"))
        return batch._replace(parts=parts)

    def _try_pass(self, rows: Sequence[Row]) -> None:
        """Forward and backward without other ranks, and without a gradient left in the weights."""
        parts, _ = make_parts(rows, self.rows, batching=self.batching, budget=self.budget.tokens)
        device_parts = [self.transfer_batch_to_device(part, self.device, 0) for part in self.budget.cut(parts)]
        weights = [weight for weight in self.embedder.parameters() if weight.requires_grad]
        with self.trainer.precision_plugin.forward_context():
            total = embed_parts(self.embedder, device_parts, recompute=self.budget.tokens is not None).sum()
        torch.autograd.grad(total, weights, allow_unused=True)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Reseed, so that a resumed run draws what an uninterrupted one would have drawn."""
        self._reseed()

    def _reseed(self) -> None:
        torch.manual_seed(hash_seed(self.seed, self.global_step, self.global_rank))
        self._norm = None

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        """The loss of the global batch."""
        parts = self.budget.cut(batch.parts)
        rows = embed_parts(self.embedder, parts, recompute=self.budget.tokens is not None)
        embeddings, targets = rows.index_select(0, batch.order), batch.targets
        if self.trainer.world_size > 1:
            embeddings = gathered_rows(self, embeddings, gradients=True)
            targets = gathered_rows(self, targets)
        loss = self.objective(embeddings, targets)
        # not in the progress bar: Lightning would fetch it from the device in every step
        self.log("train/loss", loss.detach(), batch_size=len(batch.order))
        return loss

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step; one process without memory for the batch goes through it again in smaller parts, to the same loss.

        Raises:
            ValueError: no memory for a single text, or on one of several ranks.
        """
        assert optimizer_closure is not None
        loss_and_gradients = optimizer_closure

        def closure() -> Any:
            if self.trainer.world_size == 1:
                with self.budget.announced():
                    return self.budget.until_it_fits(loss_and_gradients, before=lambda: self._undo(optimizer))
            try:
                return loss_and_gradients()
            except torch.OutOfMemoryError:
                raise self.budget.refusal(self.global_rank) from None

        super().optimizer_step(epoch, batch_idx, optimizer, closure)

    def _undo(self, optimizer: Optimizer | LightningOptimizer) -> None:
        optimizer.zero_grad()
        self._reseed()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The budget that was found too, so that a resumed run cuts its batches alike."""
        checkpoint["token_budget"] = self.budget.tokens

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the smaller budget."""
        known = [each for each in (self.budget.tokens, checkpoint.get("token_budget")) if each is not None]
        self.budget.tokens = min(known, default=None)

    def gradient_norm(self) -> Float[Tensor, ""]:
        """The norm of the whole gradient of this step before clipping, computed once; all ranks together."""
        if self._norm is None:
            gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
            self._norm = whole_tensor(torch.nn.utils.get_total_norm(gradients))
        return self._norm

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the gradient's norm before clipping."""
        self.log("train/gradient_norm", self.gradient_norm())

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm that is known already."""
        if gradient_clip_algorithm == "value":
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            torch.nn.utils.clip_grads_with_norm_(self.parameters(), gradient_clip_val, self.gradient_norm())

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
