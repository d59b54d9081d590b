"""NonFiniteLoss: what ends a run when a number that it computes is not finite, and how its message names the texts at fault."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

SHOWN, NAMED, LENGTH = 6, 64, 24
"""Items of a batch whose texts a message quotes, items that it names, and characters of a quoted text."""


class NonFiniteLoss(RuntimeError):  # noqa: N818  (the field says "non-finite loss")
    """A loss, gradient, weight or embedding is NaN or infinite; the message says where, and what is kept."""

    explained = True
    """The message says all that a user can act on; a command prints no traceback."""


def named_items(items: Sequence[tuple[int, int]], texts: Sequence[str]) -> str:
    """A batch in one line: ``place/label`` of each item, and how the texts of the first ones begin.

    Args:
        items: (place in the training texts, label) of each text of the batch.
        texts: The training texts; empty where they are not known.

    Example:
        >>> named_items([(1, 0), (0, 5)], ["2, 4, 6", "3, 6, 9"])
        "1/0 '3, 6, 9', 0/5 '2, 4, 6'"
    """
    words = []
    for number, (place, label) in enumerate(items[:NAMED]):
        quoted = f" {texts[place][:LENGTH]!r}" if number < SHOWN and place < len(texts) else ""
        words.append(f"{place}/{label}{quoted}")
    if len(items) > NAMED:
        words.append(f"and {len(items) - NAMED} more")
    return ", ".join(words)


def non_finite_name(tensors: Mapping[str, object]) -> str | None:
    """The name of the first tensor, in the nested mapping, that has an element which is not finite; None if there is none.

    Example:
        >>> non_finite_name({"a": torch.ones(2), "b": {"c": torch.tensor([1.0, float("nan")])}})
        'b.c'
    """
    for name, value in tensors.items():
        if isinstance(value, Mapping):
            inner = non_finite_name({str(key): each for key, each in value.items()})
            if inner is not None:
                return f"{name}.{inner}"
        elif isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return name
    return None
