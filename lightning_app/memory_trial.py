"""memory_trial: the budget with which every rank has memory for the stage's longest texts, found before the first step."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lightning_app.agreement import Agreement
from lightning_app.part_budget import PartBudget

NO_LIMIT = 2**62
"""A budget above all others, for ranks that agree on the least."""


def tries_memory(device: torch.device) -> bool:
    """Whether a trial tells anything: on a GPU, where memory ends with an error that can be caught."""
    return device.type == "cuda"


def memory_trial(budget: PartBudget, attempt: Callable[[], object], agreement: Agreement) -> None:
    """Take the smallest budget that any rank needs for ``attempt``; all ranks together.

    In the middle of a step a rank without memory would leave the others waiting, so this comes before.

    Args:
        budget: of this rank; it has that of all ranks afterwards.
        attempt: a pass of the longest texts that cuts its parts with ``budget`` and waits for no other rank.
        agreement: of the ranks.

    Raises:
        ValueError: on every rank, if one of them has no memory for a single text.
    """
    failure = None
    try:
        budget.until_it_fits(attempt)
    except ValueError as error:
        failure = error
    least = agreement.of(0 if failure else budget.tokens or NO_LIMIT, "least")
    if failure:
        raise failure
    if not least:
        raise ValueError(
            "--token-budget: expected memory for one text on every rank, found none on another; its line says more"
        )
    budget.tokens = None if least == NO_LIMIT else least
