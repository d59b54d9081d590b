"""Lengths of the prefixes of an embedding that are trained as embeddings of their own (Matryoshka)."""

from collections.abc import Sequence


def check_dimensions(dimensions: Sequence[int], length: int | None = None, *, name: str = "dimensions") -> None:
    """Refuse lengths that no prefix has.

    Args:
        dimensions: of the prefixes; none are fine.
        length: of the whole embedding. None: not known yet.
        name: of the flag, for the message.

    Raises:
        ValueError: not ascending, not above 0, or not below ``length``.

    Example:
        >>> check_dimensions((64, 128), 128)
        Traceback (most recent call last):
        ...
        ValueError: dimensions: expected numbers below the model's dimension 128 (trained anyway), got 64 128; drop 128
    """
    shown = " ".join(map(str, dimensions))
    if any(each < 1 for each in dimensions) or list(dimensions) != sorted(set(dimensions)):
        raise ValueError(f"{name}: expected ascending numbers above 0, got {shown}; such as 64 128 256")
    if length is not None and dimensions and dimensions[-1] >= length:
        raise ValueError(
            f"{name}: expected numbers below the model's dimension {length} (trained anyway), got {shown}; drop "
            f"{' '.join(str(each) for each in dimensions if each >= length)}"
        )
