"""Merging what is already in memory: the same mathematics by the same code as a merge of files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from merging.agreement import refuse_disagreement
from merging.request import Request, settings_of
from merging.schedule import Settings, layer_count
from merging.sources import HeldTensor, TensorSource
from merging.task import Task
from merging.windows import MEMORY, merge_tasks


def merge_tensors(tensors: Sequence[Tensor], *, method: str, base: Tensor | None = None, **parameters: Any) -> Tensor:
    """Merge tensors of one shape as one group, and return a tensor like the base or the first.

    The parameters are those of :func:`merge_state_dicts`; ``base`` counts as an input when it is one of
    ``tensors`` itself.

    Raises:
        ValueError: shapes differ, or a parameter does not fit.

    >>> merge_tensors([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])], method="slerp", t=0.5)
    tensor([0.7071, 0.7071])
    """
    own = None if base is None else {"tensor": base}
    return merge_state_dicts([{"tensor": tensor} for tensor in tensors], method=method, base=own, **parameters)[
        "tensor"
    ]


def merge_state_dicts(
    state_dicts: Sequence[Mapping[str, Tensor]],
    *,
    method: str,
    base: Mapping[str, Tensor] | None = None,
    weights: Sequence[Any] | None = None,
    t: Any = None,
    space: str | None = None,
    granularity: str = "tensor",
    norm: str = "interpolate",
    antipodal: str = "error",
    scale: Any = None,
    density: Any = None,
    gamma: Any = None,
    epsilon: Any = None,
    normalize: Any = None,
    rescale: Any = None,
    select_topk: Any = None,
    seed: int = 0,
    settings: Settings | None = None,
    extrapolate: bool = False,
    compat: str | None = None,
    threads: int | None = None,
) -> dict[str, Tensor]:
    """Merge state dicts tensor by tensor; each result has the dtype of the base's or first one's, and its device.

    The parameters are those of :func:`merging.merge_checkpoints`; ``base`` counts as an input when one of
    ``state_dicts`` holds the very same tensors.

    Raises:
        ValueError: names or shapes differ, values are not finite, or a parameter does not fit.

    >>> weights = [{"w": torch.tensor([1.0, 3.0])}, {"w": torch.tensor([3.0, 5.0])}]
    >>> merge_state_dicts(weights, method="linear")
    {'w': tensor([2., 4.])}
    """
    chosen = settings_of(
        settings,
        t=t,
        weights=weights,
        scale=scale,
        density=density,
        gamma=gamma,
        epsilon=epsilon,
        normalize=normalize,
        rescale=rescale,
        select_topk=select_topk,
        inputs=len(state_dicts),
    )
    request = Request(
        inputs=[f"input {index}" for index in range(len(state_dicts))],
        method=method,
        settings=chosen,
        space=space,
        granularity=granularity,
        norm=norm,
        antipodal=antipodal,
        seed=seed,
        extrapolate=extrapolate,
        compat=compat,
    )
    tasks = held_tasks(request, state_dicts, base)
    donor = state_dicts[0] if base is None else base
    ready = _merge_on_device(tasks)
    results = {
        task.name: torch.empty(donor[task.name].numel(), dtype=task.dtype, device=donor[task.name].device)
        for task in tasks
        if task.name not in ready
    }

    def keep(task: Task, first: int, values: Tensor) -> None:
        results[task.name][first : first + values.numel()] = values

    merge_tasks([task for task in tasks if task.name not in ready], keep, memory=MEMORY, threads=threads)
    merged = ready | {name: result.reshape(donor[name].shape) for name, result in results.items()}
    return {task.name: merged[task.name] for task in tasks}


def held_tasks(
    request: Request, state_dicts: Sequence[Mapping[str, Tensor]], base: Mapping[str, Tensor] | None
) -> list[Task]:
    """Return a task for each tensor of models in memory."""
    labels = [*(["base"] if base is not None else []), *map(str, request.inputs)]
    dicts = [*([base] if base is not None else []), *state_dicts]
    held: list[dict[str, TensorSource]] = [
        {name: HeldTensor(tensor, label) for name, tensor in state.items()}
        for label, state in zip(labels, dicts, strict=True)
    ]
    known, inputs = (held[0], held[1:]) if base is not None else (None, held)
    rule = request.rule(
        inputs=len(inputs),
        has_base=base is not None,
        base_index=_index_of(base, state_dicts),
        layers=layer_count(held[0] if held else ()),
    )
    agreement = refuse_disagreement(labels, held)
    return [
        Task(
            name=name,
            inputs=tuple(state[name] for state in inputs),
            base=None if known is None else known[name],
            rule=rule,
            told=rule.at(name),
            dtype=first.dtype,
        )
        for name, first in agreement.kept(held[0]).items()
    ]


def _merge_on_device(tasks: Sequence[Task]) -> dict[str, Tensor]:
    """Merge, where they are, the tensors that lie on one CUDA device and that its kernels can merge."""
    places = {source.tensor.device for task in tasks for source in task.sources if isinstance(source, HeldTensor)}
    if len(places) != 1 or next(iter(places)).type != "cuda":
        return {}
    from merging.device_tasks import merge_held_on_device, suits_device

    return merge_held_on_device([task for task in tasks if suits_device(task)])


def _index_of(base: Mapping[str, Tensor] | None, state_dicts: Sequence[Mapping[str, Tensor]]) -> int | None:
    """Return which state dict holds the base's own tensors (the same objects); None if none does."""
    for index, state in enumerate(state_dicts):
        if base and state.keys() == base.keys() and all(state[name] is base[name] for name in base):
            return index
    return None
