"""Embeddings of a fixed list of texts when several ranks share the work.

Dimension names: n texts, m of them on this rank, d embedding.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule
from torch import Tensor

from callbacks.non_finite import LENGTH, NonFiniteLoss


def gathered_embeddings(module: LightningModule, texts: Sequence[str]) -> Float[Tensor, "n d"]:
    """Embed ``texts`` with ``module.encode``, each text on one rank, and return all of them on every rank, in order.

    Ranks take texts in turn; where they do not divide evenly, some embed the last text again and the copy is dropped
    (a repeated row has distance zero to itself and would raise a silhouette).

    Raises:
        NonFiniteLoss: an embedding with an element that is not finite; the message names the text.
    """
    embeddings = _gathered(module, texts)
    if not bool(torch.isfinite(embeddings).all()):
        place = int((~torch.isfinite(embeddings)).any(dim=1).nonzero()[0])
        raise NonFiniteLoss(
            f"embeddings: expected finite numbers, got nan or infinity in epoch {module.trainer.current_epoch} for "
            f"text {place} ({texts[place][:LENGTH]!r}) of {len(texts)} texts that are measured; what was saved before is kept; "
            "take --precision 32-true or --dtype float32, or lower --stages.N.learning-rate"
        )
    return embeddings


def _gathered(module: LightningModule, texts: Sequence[str]) -> Float[Tensor, "n d"]:
    ranks, rank = module.trainer.world_size, module.global_rank
    share = -(-len(texts) // ranks)
    indices = [min(rank + ranks * i, len(texts) - 1) for i in range(share)]
    with torch.no_grad():
        mine = module.encode([texts[i] for i in indices])  # type: ignore[operator]
    if ranks == 1:
        return mine
    gathered = gathered_rows(module, mine.to(module.device)).cpu()
    places = gathered_rows(module, torch.tensor(indices, device=module.device)).cpu()
    embeddings = torch.empty(len(texts), mine.shape[1])
    embeddings[places] = gathered
    return embeddings


def gathered_rows(module: LightningModule, rows: Tensor, *, gradients: bool = False) -> Tensor:
    """The rows of all ranks below each other, rank by rank; every rank must bring equally many."""
    gathered = module.all_gather(rows, sync_grads=gradients)
    assert isinstance(gathered, Tensor)
    return gathered.flatten(0, 1)
