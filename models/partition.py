"""partition: the texts of one batch in parts of like length, so that little is padded."""

from __future__ import annotations

from collections.abc import Sequence


def partition(lengths: Sequence[int], *, overhead: int = 64, budget: int | None = None) -> list[list[int]]:
    """Cut texts, sorted by length, into the parts that cost least.

    A part of n texts costs ``overhead + n x its longest`` tokens: of all cuts of the sorted texts this finds the one with
    the least sum, so a batch of equal lengths stays whole.

    Args:
        lengths: tokens of each text, at least 1.
        overhead: what a forward and backward pass costs on its own, in tokens; 0 pads nothing that sorting can avoid.
        budget: most tokens a part, padding included; a text that is longer is a part of its own.

    Returns:
        Parts as places in ``lengths``, shortest texts first; every place once.

    Example:
        >>> partition([5, 50, 6, 48], overhead=8)
        [[0, 2], [3, 1]]
        >>> partition([10, 10, 10, 10], budget=20)
        [[0, 1], [2, 3]]
    """
    order = sorted(range(len(lengths)), key=lambda place: (lengths[place], place))
    best = [0.0] + [float("inf")] * len(order)
    cut = [0] * (len(order) + 1)
    # Equal lengths are never better apart, unless a budget cuts them: thousands of texts have few different lengths.
    places = [
        place
        for place in range(len(order) + 1)
        if budget is not None or place in (0, len(order)) or lengths[order[place - 1]] < lengths[order[place]]
    ]
    for number, end in enumerate(places):
        longest = lengths[order[end - 1]]
        for start in reversed(places[:number]):
            tokens = (end - start) * longest
            if budget is not None and tokens > budget and end - start > 1:
                break
            if best[start] + overhead + tokens < best[end]:
                best[end], cut[end] = best[start] + overhead + tokens, start
    parts, end = [], len(order)
    while end:
        parts.append(order[cut[end] : end])
        end = cut[end]
    return parts[::-1]
