"""Inputs must be the same model with other values: names, shapes and dtypes are compared before anything is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from merging.sources import TensorSource

SHOWN = 3
"""How many names an error lists."""


def refuse_disagreement(labels: Sequence[str], inputs: Sequence[Mapping[str, TensorSource]]) -> None:
    """Raise ValueError at the first tensor that is not alike in all inputs; ``labels`` name the inputs.

    A tensor that all of them lack (a tied output layer, say) is no difference.
    """
    for (label, first), (other_label, other) in pairwise(zip(labels, inputs, strict=True)):
        _compare_names(label, first, other_label, other)
        for name, tensor in first.items():
            twin = other[name]
            if tensor.shape != twin.shape:
                raise ValueError(
                    f"{other_label}: tensor {name}: expected shape {list(tensor.shape)} as in {label}, "
                    f"got {list(twin.shape)}; merge models of one architecture and vocabulary"
                )
            if tensor.dtype != twin.dtype:
                raise ValueError(
                    f"{other_label}: tensor {name}: expected {tensor.dtype} as in {label}, got {twin.dtype}; "
                    "save all models in one dtype"
                )
    for name, tensor in inputs[0].items():
        if tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1:
            raise ValueError(
                f"{labels[0]}: tensor {name}: expected full precision, got {tensor.dtype}, which is quantised; "
                "merge the models before they are quantised"
            )


def _compare_names(
    label: str, first: Mapping[str, TensorSource], other_label: str, other: Mapping[str, TensorSource]
) -> None:
    missing = [name for name in first if name not in other]
    extra = [name for name in other if name not in first]
    if missing or extra:
        parts = [f"{what} {_some(names)}" for what, names in (("lacks", missing), ("adds", extra)) if names]
        raise ValueError(
            f"{other_label}: expected the tensors of {label}, got a model that {' and '.join(parts)}; "
            "merge models of one architecture"
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
