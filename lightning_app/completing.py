"""What a merge of files leaves to the packages that know the models: the folder made loadable, and the notes of its card."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Literal

from merging.card import CardNotes
from merging.engine import Complete
from merging.plan import MergePlan
from models.backbone import Backbone
from models.card import licence_of
from models.completion import complete_folder, reads_both_ways


def completing(
    *, row: Backbone | None = None, bidirectional: bool = False, layout: Literal["native", "compat"] = "native"
) -> Complete:
    """What ``merge_checkpoints`` is given as ``complete``.

    Args:
        row: of the base, where its folder does not tell.
        bidirectional: whether the causal mask of a decoder was removed; inputs that say so themselves count too.
        layout: ``compat`` rewrites the folder for sentence-transformers 5.

    Raises:
        ValueError: by the function that is returned, see `complete_folder` and `compat_layout`.
    """
    return partial(_complete, row=row, bidirectional=bidirectional, layout=layout)


def _complete(folder: Path, plan: MergePlan, *, row: Backbone | None, bidirectional: bool, layout: str) -> CardNotes:
    models = [*plan.inputs, *([plan.base] if plan.base is not None else [])]
    both_ways = bidirectional or any(reads_both_ways(model.path) for model in models if Path(model.path).is_dir())
    obstacle = complete_folder(folder, base=plan.companions, bidirectional=both_ways)
    if layout == "compat":
        from models.compat_layout import compat_layout

        compat_layout(folder)
    licence = licence_of(plan.companions, row)
    sections = [f"## Licence\n\n{licence.text}"]
    limits = [] if obstacle is None else [f"Only embarc loads this folder: {obstacle}."]
    limits += _mixed_attention(plan)
    if limits:
        sections.append("## Limits\n\n" + "\n".join(limits))
    loads_by_modules = (folder / "modules.json").is_file()
    return CardNotes(
        front={**({"pipeline_tag": "sentence-similarity"} if loads_by_modules else {}), **licence.front},
        sections=tuple(sections),
        library="embarc" if obstacle is not None else "sentence-transformers" if loads_by_modules else None,
    )


def _mixed_attention(plan: MergePlan) -> list[str]:
    """Adapters of one base that were trained with and without its causal mask can be merged, and should not be in silence."""
    adapters = [Path(each.path) for each in plan.inputs if (Path(each.path) / "adapter_config.json").is_file()]
    without = [folder for folder in adapters if reads_both_ways(folder)]
    if not without or len(without) == len(adapters):
        return []
    causal = next(folder for folder in adapters if folder not in without)
    said = (
        f"{without[0].name} was trained without the causal mask and {causal.name} with it; the result is used without, which "
        f"{causal.name} has never seen."
    )
    print(f"warning: {said}", file=sys.stderr)
    return [said]
