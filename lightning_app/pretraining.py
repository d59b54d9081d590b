"""How the built-in tiny-llm is made: a causal language model on integer sequences, then a generic contrastive stage.

The second stage knows no family: two windows of one random rule at different magnitudes are a pair. What both stages may not
read is refused by content (data/exclusion.py). A step is a pure function of (seed, stage, step), so the run needs no data files.
"""

import json
import random
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from rich.console import Console
from rich.progress import Progress
from sentence_transformers import SentenceTransformer
from torch import Tensor

from data.rules import draw_texts
from data.suites import Suite, selection_suite
from evaluation.clustering import silhouette_score
from lightning_app.pretrain_config import PretrainConfig
from models.adapter import transformer_of
from models.embedder import load_embedder
from models.quiet import quiet_loading
from models.tiny_llm import build_tiny_llm, lm_logits
from storage.atomic import building_folder, refuse_existing, write_text
from storage.json_file import read_json, write_json

Row = dict[str, float | int | str]


def pretrain(config: PretrainConfig) -> dict[str, float]:
    """Make tiny-llm and write it to ``config.output``: weights, ``training_log.jsonl`` and ``pretraining.json``.

    The weights kept are those with the best silhouette on the `selection` suite among the contrastive stage's evaluations; without
    that stage, the last ones.

    Returns:
        The kept evaluation: ``validation_loss`` (nats a token, lower is better), ``selection_silhouette`` (-1..1, higher is better).
    """
    output = Path(config.output)
    refuse_existing(output, overwrite=config.overwrite)
    torch.set_num_threads(config.threads)
    embedder, log, commands = _begin(config)
    with Progress(console=Console(stderr=True)) as progress:
        for row in _both_stages(embedder, config, progress):
            log.append(row)
            progress.console.print(json.dumps(row), highlight=False)
    kept = _evaluate(embedder, config)
    record = {
        "commands": [*commands, config.command()],
        "config": config.to_dict(),
        "kept": kept,
        "torch": torch.__version__,
    }
    with building_folder(output, overwrite=config.overwrite) as folder, quiet_loading():
        embedder.save_pretrained(str(folder), create_model_card=False)
        write_text(folder / "training_log.jsonl", "".join(json.dumps(row) + "\n" for row in log))
        write_json(folder / "pretraining.json", record)
    return kept


def _begin(config: PretrainConfig) -> tuple[SentenceTransformer, list[Row], list[str]]:
    """The model to train, and the log and the commands of the run it comes from, if any."""
    if config.init is None:
        size = {
            "hidden_size": config.hidden_size,
            "layers": config.layers,
            "intermediate_size": config.intermediate_size,
        }
        return build_tiny_llm(**size, seed=config.seed), [], []
    folder = Path(config.init)
    if not (folder / "pretraining.json").is_file():
        raise ValueError(
            f"--init {folder}: expected an output of pretrain.py, found no pretraining.json; leave it out to start anew"
        )
    log = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    return load_embedder(folder), log, read_json(folder / "pretraining.json")["commands"]


def _both_stages(embedder: SentenceTransformer, config: PretrainConfig, progress: Progress) -> Iterator[Row]:
    """Train; yields a log row at every evaluation, and leaves the best of the contrastive stage's weights in the model."""
    best_score, best_weights = float("-inf"), None
    for stage, steps in (("language", config.language_steps), ("contrastive", config.contrastive_steps)):
        if steps == 0:
            continue
        bar = progress.add_task(stage, total=steps)
        for row in _train(embedder, config, stage, steps):
            progress.update(bar, completed=int(row["step"]))
            yield row
            if stage == "contrastive" and float(row["selection_silhouette"]) > best_score:
                best_score = float(row["selection_silhouette"])
                best_weights = {name: tensor.clone() for name, tensor in embedder.state_dict().items()}
    if best_weights is not None:
        embedder.load_state_dict(best_weights)


def _train(embedder: SentenceTransformer, config: PretrainConfig, stage: str, steps: int) -> Iterator[Row]:
    """Run one stage; yields a log row at every evaluation."""
    peak = config.language_rate if stage == "language" else config.contrastive_rate
    optimizer = torch.optim.AdamW(embedder.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_cosine(step, steps))
    began, tokens, losses = time.monotonic(), 0, []
    for step in range(1, steps + 1):
        rng = random.Random(f"{config.seed} {stage} {step}")
        embedder.train()
        batch_loss, batch_tokens = (_language_step if stage == "language" else _contrastive_step)(embedder, config, rng)
        torch.nn.utils.clip_grad_norm_(embedder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(batch_loss)
        tokens += batch_tokens
        if step % config.evaluate_every == 0 or step == steps:
            row: Row = {"stage": stage, "step": step, "train_loss": sum(losses) / len(losses)}
            yield row | _evaluate(embedder, config) | {"tokens": tokens, "seconds": round(time.monotonic() - began, 1)}
            losses = []


def _warm_cosine(step: int, steps: int, *, warm: int = 40, floor: float = 0.05) -> float:
    """Linear warm-up, then a cosine down to ``floor`` of the peak."""
    if step < warm:
        return (step + 1) / warm
    progress = (step - warm) / max(1, steps - warm)
    return floor + (1 - floor) * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * progress))))


def _language_step(embedder: SentenceTransformer, config: PretrainConfig, rng: random.Random) -> tuple[float, int]:
    """Backward of the mean next-token loss over one batch, in sub-batches sorted by length."""
    texts = sorted((draw_texts(rng)[1][0] for _ in range(config.language_batch)), key=len)
    parts = [texts[at : at + config.part] for at in range(0, len(texts), config.part)]
    total, tokens = 0.0, 0
    for part in parts:
        loss, _, count = _forward(embedder, config, part)
        (loss / len(parts)).backward()  # type: ignore[no-untyped-call]
        total, tokens = total + loss.item() / len(parts), tokens + count
    return total, tokens


def _contrastive_step(embedder: SentenceTransformer, config: PretrainConfig, rng: random.Random) -> tuple[float, int]:
    """Backward of InfoNCE over the batch's pairs plus the weighted next-token loss of the same texts.

    All texts of a batch meet in one softmax, so they go through the model together.
    """
    pairs = [draw_texts(rng, per_rule=2)[1] for _ in range(config.contrastive_batch)]
    language, embeddings, tokens = _forward(embedder, config, [pair[side] for side in (0, 1) for pair in pairs])
    left, right = embeddings.chunk(2)
    similarity = left @ right.T / config.temperature
    targets = torch.arange(len(pairs))
    contrast = (F.cross_entropy(similarity, targets) + F.cross_entropy(similarity.T, targets)) / 2
    (contrast + config.language_weight * language).backward()  # type: ignore[no-untyped-call]
    return contrast.item(), tokens


def _forward(
    embedder: SentenceTransformer, config: PretrainConfig, texts: list[str]
) -> tuple[Float[Tensor, ""], Float[Tensor, "n d"], int]:
    """Next-token loss, unit embeddings and number of tokens of some texts.

    Padding stands on the right of a causal model, so no real position sees it, and the model runs without a mask.
    """
    features = embedder.preprocess(texts)
    ids, mask = features["input_ids"], features["attention_mask"].bool()
    model = transformer_of(embedder)
    with torch.autocast("cpu", torch.bfloat16) if config.bf16 else nullcontext():
        hidden = model(input_ids=ids).last_hidden_state
        logits = lm_logits(hidden, model.get_input_embeddings().weight)  # type: ignore[operator]
    kept = mask[:, 1:]
    loss = F.cross_entropy(logits[:, :-1][kept].float(), ids[:, 1:][kept])
    weights = mask.unsqueeze(-1).float()
    embeddings = F.normalize((hidden.float() * weights).sum(1) / weights.sum(1), dim=-1)
    return loss, embeddings, int(mask.sum())


@torch.no_grad()
def _evaluate(embedder: SentenceTransformer, config: PretrainConfig) -> dict[str, float]:
    """Next-token loss on texts drawn apart from the steps, and the silhouette of the `selection` suite."""
    embedder.eval()
    rng = random.Random(f"{config.seed} validation")
    texts = sorted((draw_texts(rng)[1][0] for _ in range(config.validation_texts)), key=len)
    parts = [texts[at : at + config.part] for at in range(0, len(texts), config.part)]
    losses = [_forward(embedder, config, part)[0].item() for part in parts]
    suite: Suite = selection_suite()
    embeddings = embedder.encode(list(suite.texts), convert_to_tensor=True, show_progress_bar=False)
    return {
        "validation_loss": round(sum(losses) / len(losses), 4),
        "selection_silhouette": round(silhouette_score(embeddings, suite.labels), 4),
    }
