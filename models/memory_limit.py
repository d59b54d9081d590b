"""smaller_budget: how many tokens to embed at once after a step that found no memory."""

from __future__ import annotations

from collections.abc import Sequence


def smaller_budget(shapes: Sequence[tuple[int, int]], budget: int | None) -> int:
    """Half the tokens of the largest part that can be cut.

    Args:
        shapes: of the parts that found no memory: texts and tokens of the longest.
        budget: in force then; None where the activations of all parts were kept.

    Returns:
        A budget with which less is held at once than before.

    Raises:
        ValueError: every part is one text already, and computed again in the backward pass.

    Example:
        >>> smaller_budget([(8, 16), (4, 100)], None)
        200
        >>> smaller_budget([(1, 90), (1, 100)], None)
        100
    """
    cuttable = [texts * tokens for texts, tokens in shapes if texts > 1]
    if cuttable:
        return max(cuttable) // 2
    longest = max(tokens for _, tokens in shapes)
    if budget is None and len(shapes) > 1:
        return longest
    raise ValueError(
        f"--token-budget: expected memory for one text of {longest} tokens, found none; take --gradient-checkpointing, "
        "--adapt-top or --lora.quantization nf4, or shorten the text"
    )
