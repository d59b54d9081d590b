"""``merge_adapters``: PEFT adapters of one base in, one PEFT adapter out, without building dense weights.

The methods are those of a merge of whole models, on the differences that the adapters make to their base, and the
result is the same: exact as factors side by side, or recompressed to a rank with the error reported.  A method that
looks at single elements sees one dense tensor at a time, and is always recompressed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from merging.adapter import is_adapter
from merging.adapter_file import Adapter, read_adapter
from merging.adapter_output import check_output, copy_adapter, write_adapter
from merging.adapter_parts import parts_of, refuse_misfits
from merging.card import CardNotes, model_card
from merging.lora_merge import Decision, Look, Merged, decide, look_at, merge_part
from merging.lora_report import lora_report
from merging.request import PathLike, settings_of
from merging.rule import Number, Rule, settle_rule
from merging.schedule import Settings, layer_count
from merging.shared_base import base_record, named_base, open_shared_base
from storage.atomic import building_folder, refuse_existing, write_text
from storage.json_file import write_json
from storage.manifest import weight_hashes, write_manifest

Progress = Callable[[int, int], None]
"""Called with (tensors merged, tensors in total) after every tensor."""


def merge_adapters(
    inputs: Sequence[PathLike],
    output: PathLike,
    *,
    method: str,
    base: PathLike | None = None,
    weights: Sequence[Number] | None = None,
    t: Number | None = None,
    norm: str = "interpolate",
    antipodal: str = "error",
    scale: Number | None = None,
    density: Number | Sequence[Number] | None = None,
    gamma: Number | Sequence[Number] | None = None,
    epsilon: Number | Sequence[Number] | None = None,
    normalize: bool | None = None,
    rescale: bool | None = None,
    select_topk: Number | None = None,
    seed: int = 0,
    settings: Settings | None = None,
    rank: int | None = None,
    extrapolate: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Merge PEFT LoRA and DoRA adapters of one base into one adapter, and return the content of its merge.json.

    Args:
        inputs: adapter folders.
        output: the folder to write; it appears whole or not at all, and ``PeftModel.from_pretrained`` loads it.
        method: a name of ``METHODS``.
        base: the model that the adapters were trained on.  It is read for DoRA, trained biases and modules saved
            whole, and is then by default the local folder that the adapters name.
        weights, t, scale, density, gamma, epsilon, normalize, rescale, select_topk, seed, settings: as for
            ``merge_checkpoints``.
        norm, antipodal: as for ``merge_checkpoints``; vectors are differences from the base.
        rank: highest rank of the result.  None gives the exact result of a coefficient method, whose rank is the sum
            of the inputs' ranks, and the highest of the inputs' ranks for a method that looks at single elements.
        extrapolate: allow t outside [0, 1] and negative weights.
        overwrite: replace an output folder that exists.
        progress: called with (tensors merged, tensors in total).

    Raises:
        ValueError: a mistake in what was asked, adapters that do not belong together or to the base, or values that
            are not finite; nothing is left under ``output``.
    """
    target = Path(output)
    refuse_existing(target, overwrite=overwrite)
    if rank is not None and rank < 1:
        raise ValueError(f"--rank: expected a rank of at least 1, got {rank}; leave it out for the exact merge")
    adapters = [_read(path) for path in inputs]
    for adapter in adapters:
        if adapter.config.parameters:
            raise ValueError(
                f"{adapter.config.file}: expected an adapter of modules, got target_parameters "
                f"{adapter.config.parameters[0]}; leave --adapter out, which merges whole models"
            )
    told = settings_of(
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
        inputs=len(adapters),
    )
    rule = settle_rule(
        method,
        inputs=len(adapters),
        has_base=True,
        base_index=None,
        settings=told,
        layers=layer_count(name for adapter in adapters for name in adapter.tensor_names),
        space="task_vector",
        norm=norm,
        antipodal=antipodal,
        seed=seed,
        extrapolate=extrapolate,
    )
    refuse_misfits(adapters)
    known = open_shared_base(adapters, base)
    check_output(target, overwrite, [Path(one.path) for one in adapters] + ([known.folder] if known else []), 0)
    parts = parts_of(adapters, known)
    hashes = [weight_hashes(adapter.path) for adapter in adapters]
    looks = [look_at(part, rule, adapters) for part in parts]
    decisions = decide(looks, rule)
    merged = _merge(adapters, looks, decisions, rule, rank, progress)
    check_output(target, overwrite, [], sum(map(_bytes, merged)))
    with building_folder(target, overwrite=overwrite) as folder:
        if _gives_back(adapters, decisions, rank):
            copy_adapter(folder, adapters[0])
        else:
            write_adapter(folder, adapters, merged, named_base(adapters, known))
        record = base_record(adapters, known)
        report = lora_report(rule, adapters, merged, hashes=hashes, base=record, rank=rank)
        write_json(folder / "merge.json", report)
        card = model_card(report, name=target.name, library="peft", notes=_notes(record))
        write_text(folder / "README.md", card)
        write_manifest(folder, kind="merge", **({"base": record} if record else {}))
    return report


def _notes(base: dict[str, Any] | None) -> CardNotes | None:
    """What the card says where training recorded that plain PEFT does not give the embeddings of its stages."""
    plain = (base or {}).get("plain_peft", {})
    if plain.get("loads", True):
        return None
    said = f"## Limits\n\nOnly embarc loads this adapter as its inputs were trained: {plain.get('reason')}."
    return CardNotes(sections=(said,), library="embarc")


def _read(path: PathLike) -> Adapter:
    if not Path(path).is_dir() or not is_adapter(path):
        raise ValueError(
            f"--inputs {os.fspath(path)}: expected the folder of a PEFT adapter, got none; merge whole models by "
            "merge_checkpoints"
        )
    return read_adapter(path)


def _merge(
    adapters: Sequence[Adapter],
    looks: Sequence[Look],
    decisions: Sequence[Decision],
    rule: Rule,
    rank: int | None,
    progress: Progress | None,
) -> list[Merged]:
    dora = rule.method.kind == "coefficients" and any(adapter.config.dora for adapter in adapters)
    merged: list[Merged] = []
    for look, decision in zip(looks, decisions, strict=True):
        merged.append(merge_part(look, decision, rule, rank=rank, dora=dora and look.part.kind == "module"))
        if progress is not None:
            progress(len(merged), len(looks))
    return merged


def _gives_back(adapters: Sequence[Adapter], decisions: Sequence[Decision], rank: int | None) -> bool:
    """Say whether the result is the first input itself: all inputs alike bit for bit, coefficients that sum to 1."""
    first = adapters[0]
    alike = all(_is_same(first, other) for other in adapters[1:])
    fits = rank is None or all(factors.rank <= rank for factors in first.factors.values())
    sums = [math.fsum(each.coefficients.tolist()) for each in decisions if each.coefficients is not None]
    return alike and fits and len(sums) == len(decisions) and all(math.isclose(one, 1, rel_tol=1e-12) for one in sums)


def _is_same(one: Adapter, other: Adapter) -> bool:
    if one.factors.keys() != other.factors.keys() or one.whole.keys() != other.whole.keys():
        return False
    if not all(factors.is_same(other.factors[module]) for module, factors in one.factors.items()):
        return False
    return all(
        stored.dtype == other.whole[name].dtype
        and stored.shape == other.whole[name].shape
        and bool((stored.rows(0, rows) == other.whole[name].rows(0, rows)).all())
        for name, stored in one.whole.items()
        for rows in [stored.shape[0] if stored.shape else 1]
    )


def _bytes(merged: Merged) -> int:
    factors = merged.factors
    tensors = [merged.values] if factors is None else [factors.a, factors.b, factors.magnitude]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
