"""Where an adapter's names lie in its base: names in memory against names on disk.

Memory and disk may differ by a prefix such as ``model.``, which is dropped or added.  One rule must serve every
name of an adapter, so that none can land on a tensor that merely ends alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from merging.sources import Checkpoint, as_matrix

Views = Mapping[str, tuple[str, int, int]]
"""Name in memory -> (tensor of the base, first row, row after the last), where disk and memory differ by more."""


@dataclass(frozen=True)
class Place:
    """A tensor of the base, or a run of its rows."""

    name: str
    start: int
    stop: int


def places_of(names: Sequence[str], base: Checkpoint, file: Path, views: Views | None = None) -> dict[str, Place]:
    """Return the place in the base for each of ``names``, the tensors that the adapter in ``file`` speaks of.

    Raises:
        ValueError: no single rule finds all of them (the first one lost is named), or more than one does.
    """
    inside = _inside(base, views or {})
    serving: list[dict[str, Place]] = []
    best: dict[str, Place] = {}
    for drop, add in sorted(_rules(names[0], list(inside))):
        targets = {name: add + name.removeprefix(drop) for name in names if name.startswith(drop)}
        matched = {name: inside[target] for name, target in targets.items() if target in inside}
        if len(matched) == len(names):
            serving.append(matched)
        best = max(best, matched, key=len)
    if not serving:
        lost = next(name for name in names if name not in best).removesuffix(".weight")
        raise ValueError(
            f"{file}: expected keys that match tensors of the base {base.path}, got {lost}, which matches no tensor of "
            "it; give the base that the adapter was trained on as --base"
        )
    # Sorted, the rule that changes nothing comes first: names that match as they are need no other.
    as_is = all(name in inside for name in names)
    if len(serving) > 1 and not as_is:
        first = names[0].removesuffix(".weight")
        raise ValueError(
            f"{file}: expected keys that match one tensor of {base.path} each, got {first}, which matches several "
            "tensors; save the adapter with full names of its modules"
        )
    return serving[0]


def _inside(base: Checkpoint, views: Views) -> dict[str, Place]:
    """Return the places of the base's transformer by name, without the prefix of its folder."""
    own = {name.removeprefix(base.transformer): name for name in base.tensors if name.startswith(base.transformer)}
    if base.transformer == "":
        own = {name: full for name, full in own.items() if "/" not in name}
    places = {name: Place(full, 0, as_matrix(base.tensors[full].shape)[0]) for name, full in own.items()}
    return places | {name: Place(*view) for name, view in views.items()}


def _rules(first: str, inside: Sequence[str]) -> set[tuple[str, str]]:
    """Return (prefix to drop, prefix to add) for every way to bring ``first`` onto a tensor of the base."""
    rules = {("", "")}
    for name in inside:
        if name.endswith("." + first):
            rules.add(("", name.removesuffix(first)))
        elif first.endswith("." + name):
            rules.add((first.removesuffix(name), ""))
    return rules
