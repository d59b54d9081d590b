"""Merging what is already in memory: the same mathematics by the same code as a merge of files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from merging.agreement import refuse_disagreement
from merging.engine import MEMORY
from merging.group import merge_tensor
from merging.rule import Number, settle_rule
from merging.sources import HeldTensor


def merge_tensors(
    tensors: Sequence[Tensor],
    *,
    method: str,
    base: Tensor | None = None,
    weights: Sequence[Number] | None = None,
    t: Number | None = None,
    space: str | None = None,
    norm: str = "interpolate",
    antipodal: str = "error",
) -> Tensor:
    """Merge tensors of one shape and dtype as one group, and return a tensor like them.

    The parameters are those of :func:`merging.merge_checkpoints`; ``base`` counts as an input when it is one
    of ``tensors`` itself.

    Raises:
        ValueError: shapes or dtypes differ, or a parameter does not fit.

    >>> merge_tensors([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])], method="slerp", t=0.5)
    tensor([0.7071, 0.7071])
    """
    merged = merge_state_dicts(
        [{"tensor": tensor} for tensor in tensors],
        method=method,
        base=None if base is None else {"tensor": base},
        weights=weights,
        t=t,
        space=space,
        norm=norm,
        antipodal=antipodal,
    )
    return merged["tensor"]


def merge_state_dicts(
    state_dicts: Sequence[Mapping[str, Tensor]],
    *,
    method: str,
    base: Mapping[str, Tensor] | None = None,
    weights: Sequence[Number] | None = None,
    t: Number | None = None,
    space: str | None = None,
    norm: str = "interpolate",
    antipodal: str = "error",
) -> dict[str, Tensor]:
    """Merge state dicts tensor by tensor; each result has the dtype and device of its inputs.

    The parameters are those of :func:`merging.merge_checkpoints`; ``base`` counts as an input when one of
    ``state_dicts`` holds the very same tensors.

    Raises:
        ValueError: names, shapes or dtypes differ, values are not finite, or a parameter does not fit.

    >>> weights = [{"w": torch.tensor([1.0, 3.0])}, {"w": torch.tensor([3.0, 5.0])}]
    >>> merge_state_dicts(weights, method="linear")
    {'w': tensor([2., 4.])}
    """
    rule = settle_rule(
        method,
        inputs=len(state_dicts),
        has_base=base is not None,
        base_index=_index_of(base, state_dicts),
        weights=weights,
        t=t,
        space=space,
        norm=norm,
        antipodal=antipodal,
    )
    labels = [*(["base"] if base is not None else []), *(f"input {index}" for index in range(len(state_dicts)))]
    dicts = [*([base] if base is not None else []), *state_dicts]
    held = [
        {name: HeldTensor(tensor, label) for name, tensor in state.items()}
        for label, state in zip(labels, dicts, strict=True)
    ]
    refuse_disagreement(labels, held)
    known_base, inputs = (held[0], held[1:]) if base is not None else (None, held)
    result: dict[str, Tensor] = {}
    for name, first in inputs[0].items():
        origin = known_base[name] if known_base is not None else None
        merged = merge_tensor(name, [state[name] for state in inputs], origin, rule, MEMORY)
        parts = list(merged.chunks())
        empty = torch.empty(0, dtype=first.dtype, device=first.tensor.device)
        result[name] = torch.cat([empty, *parts]).reshape(first.shape)
    return result


def _index_of(base: Mapping[str, Tensor] | None, state_dicts: Sequence[Mapping[str, Tensor]]) -> int | None:
    """Return which state dict holds the base's own tensors (the same objects); None if none does."""
    for index, state in enumerate(state_dicts):
        if base and state.keys() == base.keys() and all(state[name] is base[name] for name in base):
            return index
    return None
