"""The supervised contrastive loss: tensors in, scalar out.

Dimension names: n embeddings of one batch (over all ranks), d their length.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from models.cosines import cosines


def supervised_contrastive_loss(
    embeddings: Float[Tensor, "n d"], labels: Integer[Tensor, " n"], *, temperature: float = 0.1
) -> Float[Tensor, ""]:
    r"""Pull together the embeddings of one label, push apart the others (Khosla et al. 2020, L_out, equation 2).

    With cosine similarities s, P(i) the other embeddings of i's label and A(i) all others,

        loss_i = - 1 / |P(i)| * sum_{p in P(i)} ( s_ip / T - log sum_{a in A(i)} exp(s_ia / T) )

    averaged over the anchors i that have a positive. The range is [0, inf); lower is better, and the best value
    depends on the batch: with k positives an anchor it is at least log k. The computation is in float32 at least, and
    nothing of it waits for a device.

    Args:
        embeddings: one row a text, of any length; only directions matter.
        labels: one integer a row; their values carry no order.
        temperature: T > 0; small values weigh the hardest negatives most.

    Raises:
        ValueError: when the batch has no two rows of one label (the loss is undefined; on an accelerator, where asking
            would wait for it, the value is NaN instead), the rows and labels differ in number, or the temperature is
            not positive.

    Reference: Khosla et al. (2020), Supervised Contrastive Learning, arXiv:2004.11362.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> round(supervised_contrastive_loss(embeddings, torch.tensor([0, 0, 1, 1])).item(), 6)
        9.1e-05
    """
    check_temperature(temperature)
    if len(embeddings) != len(labels):
        raise ValueError(f"labels: expected one a row ({len(embeddings)}), got {len(labels)}; pass them in row order")
    others = ~torch.eye(len(labels), dtype=torch.bool, device=embeddings.device)
    positives = (labels[:, None] == labels[None, :]) & others
    count = positives.sum(dim=1)
    anchors = count > 0
    if anchors.device.type == "cpu" and not bool(anchors.any()):
        raise ValueError(
            f"labels: expected at least two texts of one label in the batch, got {len(labels)} different labels; "
            "raise the number of texts a label (K of the P x K batch)"
        )
    similarity = cosines(embeddings) / temperature
    # Leaving the diagonal out as -inf keeps log-sum-exp stable; masking its exponentials afterwards would not.
    log_all = similarity.masked_fill(~others, -torch.inf).logsumexp(dim=1)
    log_probability = similarity - log_all[:, None]
    # Sums, for a choice of rows by a mask has a size that the host would have to wait for.
    of_positives = torch.where(positives, log_probability, 0).sum(dim=1) / count.clamp(min=1)
    return -of_positives.sum() / anchors.sum()


def check_temperature(temperature: float) -> None:
    """Refuse what cannot divide a similarity.

    Raises:
        ValueError: not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature: expected a number above 0, got {temperature}; 0.1 is the usual value")
