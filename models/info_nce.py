"""InfoNCE over pairs: each anchor picks its positive out of the positives and hard negatives of the whole batch.

Dimension names: n embeddings of one batch (over all ranks), d their length.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from models.cosines import cosines
from models.losses import check_temperature

PLACES = 2**31
"""More than the number of any text, so that two of them are one number."""
ANCHOR, POSITIVE = 0, 1
"""Roles of a text in its pair; 2 and above are its hard negatives."""


def info_nce_loss(
    embeddings: Float[Tensor, "n d"],
    pairs: Integer[Tensor, " n"],
    roles: Integer[Tensor, " n"],
    *,
    texts: Integer[Tensor, " n"] | None = None,
    known: Integer[Tensor, " k"] | None = None,
    temperature: float = 0.1,
    symmetric: bool = False,
) -> Float[Tensor, ""]:
    r"""Cross entropy of each anchor's own positive among all candidates (van den Oord et al. 2018, equation 4).

    With cosine similarities s, i an anchor, p(i) its positive and C the positives and hard negatives of all pairs,

        loss_i = - ( s_ip(i) / T - log sum_{c in C} exp(s_ic / T) )

    averaged over the anchors: sentence-transformers' MultipleNegativesRankingLoss with the scale 1 / T. ``symmetric``
    averages it with the same from the positives to the anchors (its ``per_direction`` form). The range is [0, inf);
    lower is better. The computation is in float32 at least, and nothing of it waits for a device.

    A candidate that is known to be no negative of an anchor is left out of its sum: the anchor's own text, its
    positive's text again, the positive of a pair that has the same anchor's text, and, of other pairs, every text that
    ``known`` has beside the anchor's. For this ``texts`` must be given.

    Args:
        embeddings: one row a text, of any length; only directions matter.
        pairs: the number of its pair, one a row; each pair has one anchor and one positive in the batch.
        roles: 0 the anchor, 1 the positive, 2 and above hard negatives, which are candidates of all anchors.
        texts: equal numbers for equal texts, one a row. None: all differ.
        known: `text_pairs` of what belongs together in all of the data, in this batch or not.
        temperature: T > 0; small values weigh the hardest negatives most.
        symmetric: both directions.

    Raises:
        ValueError: the rows, pairs and roles differ in number, a pair without exactly one anchor and one positive (on an
            accelerator, where asking would wait for it, the value is meaningless, or NaN without any anchor), or the
            temperature is not positive.

    Reference: van den Oord, Li and Vinyals (2018), Representation Learning with Contrastive Predictive Coding,
        arXiv:1807.03748; Henderson et al. (2017), arXiv:1705.00652, for the negatives of the batch.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> pairs, roles = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
        >>> round(info_nce_loss(embeddings, pairs, roles).item(), 6)
        4.6e-05
    """
    check_temperature(temperature)
    for name, given in (("pairs", pairs), ("roles", roles), ("texts", pairs if texts is None else texts)):
        if len(given) != len(embeddings):
            raise ValueError(
                f"{name}: expected one a row ({len(embeddings)}), got {len(given)}; pass them in row order"
            )
    anchors, positives, candidates = roles == ANCHOR, roles == POSITIVE, roles >= POSITIVE
    same = pairs[:, None] == pairs[None, :]
    _check_pairs(same, anchors, positives)
    similarity = cosines(embeddings) / temperature
    no_negative = torch.zeros_like(same) if texts is None else _known_positives(same, anchors, positives, texts)
    if texts is not None and known is not None and len(known):
        no_negative = no_negative | _among(texts[:, None] * PLACES + texts, known) & ~same
    loss = _cross_entropy(similarity, anchors, same & positives, candidates & ~no_negative)
    if symmetric:
        backwards = _cross_entropy(similarity, positives, same & anchors, anchors & ~no_negative)
        loss = (loss + backwards) / 2
    return loss


def text_pairs(first: Integer[Tensor, " k"], second: Integer[Tensor, " k"]) -> Integer[Tensor, " m"]:
    """Numbers of texts that belong together -> one sorted number for each pair, in both directions.

    Example:
        >>> len(text_pairs(torch.tensor([0, 0]), torch.tensor([1, 2])))
        4
    """
    return torch.cat([first * PLACES + second, second * PLACES + first]).sort().values


def _among(wanted: Integer[Tensor, "n n"], known: Integer[Tensor, " k"]) -> Bool[Tensor, "n n"]:
    """Which elements are in a sorted list; unlike ``torch.isin`` it waits for no device."""
    return known[torch.searchsorted(known, wanted).clamp(max=len(known) - 1)] == wanted


def _check_pairs(same: Bool[Tensor, "n n"], anchors: Bool[Tensor, " n"], positives: Bool[Tensor, " n"]) -> None:
    """Of tensors on the CPU only: an accelerator would have to be waited for."""
    if same.device.type != "cpu":
        return
    for name, rows in (("anchor", anchors), ("positive", positives)):
        found = (same & rows).sum(dim=1)
        if not len(found) or bool((found != 1).any()):
            got = int(found[found != 1][0]) if len(found) else 0
            raise ValueError(
                f"roles: expected one {name} a pair, got {got}; give each pair of the batch one text of role 0 (anchor) and "
                "one of role 1 (positive)"
            )


def _known_positives(
    same: Bool[Tensor, "n n"],
    anchors: Bool[Tensor, " n"],
    positives: Bool[Tensor, " n"],
    texts: Integer[Tensor, " n"],
) -> Bool[Tensor, "n n"]:
    """Row i, column j: text j says what pair i says, so it is no negative of it."""
    anchor_text, positive_text = ((torch.where(same & rows, texts, 0)).sum(dim=1) for rows in (anchors, positives))
    own = (anchor_text[:, None] == texts) | (positive_text[:, None] == texts)
    shared = (anchor_text[:, None] == anchor_text) & positives | (positive_text[:, None] == positive_text) & anchors
    return own | shared


def _cross_entropy(
    similarity: Float[Tensor, "n n"],
    chosen: Bool[Tensor, " n"],
    target: Bool[Tensor, "n n"],
    allowed: Bool[Tensor, "n n"],
) -> Float[Tensor, ""]:
    """Mean over the chosen rows; other rows take all columns, as a row without any would make NaN of their zero gradient."""
    log_all = similarity.masked_fill(~(allowed | target | ~chosen[:, None]), -torch.inf).logsumexp(dim=1)
    each = log_all - torch.where(target, similarity, 0).sum(dim=1)
    return torch.where(chosen, each, 0).sum() / chosen.sum()
